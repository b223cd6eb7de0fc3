"""References: outside the clip's span, no copies of it, sharp, with open eyes, of the same person, one per slot."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from components.curate.clips.references import (
    EXPRESSIONS,
    VIEWS,
    Candidate,
    Choice,
    ReferencePicker,
    choose_references,
    nearby_tracks,
    rank_frames,
)
from components.curate.clips.store import ClipStore
from components.curate.config import CurationConfig, IdentityConfig, StateConfig
from components.curate.options import ReferenceConfig
from components.curate.step import curate
from components.curate.video.decode import video_frames
from components.curate.video.faces import FEATURES, Track
from components.curate.video.image_similarity import image_distance, thumbnail
from components.dataset.manifest import read_rows
from components.dataset.states import IDLE
from lpm_model.config import REFERENCE_KINDS
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw, write_video

CONFIG = CurationConfig(max_references=13)


def person(frames: int = 480, start: int = 0, shot: int = 0) -> Track:
    values = np.zeros((frames, len(FEATURES)), np.float32)
    values[:, FEATURES.index("x1")] = values[:, FEATURES.index("y1")] = 60
    values[:, FEATURES.index("eyes")] = 0.3
    return Track(start=start, shot=shot, values=values)


def show(track: Track, frames: slice, **features: float) -> None:
    """Set features of a track on some of its frames."""
    for name, value in features.items():
        track.values[frames, FEATURES.index(name)] = value


def choose(tracks: list[Track], config: CurationConfig = CONFIG, *, states: np.ndarray | None = None) -> list[Choice]:
    """References of a clip of the first track, frames 100 to 196."""
    all_states = [np.full(len(track.values), IDLE, np.uint8) for track in tracks]
    if states is not None:
        all_states[0] = states
    rankings = [rank_frames(i, track, states) for i, (track, states) in enumerate(zip(tracks, all_states, strict=True))]
    return choose_references(rankings[0], [rankings[i] for i in nearby_tracks(tracks, 0)], 100, 97, config)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def test_every_slot_is_a_reference_kind_of_the_model() -> None:
    slots = [*VIEWS.values(), *EXPRESSIONS.values()]
    assert set(slots) <= set(REFERENCE_KINDS)
    assert len(set(slots)) == len(slots)


def test_choose_references_finds_views_and_expressions() -> None:
    track = person()
    where = {
        "left": (slice(300, 320), {"yaw": -0.5}),
        "right": (slice(330, 350), {"yaw": 0.6}),
        "smile": (slice(360, 380), {"smile": 0.1}),
        "frown": (slice(390, 410), {"brow_inner": -0.02, "brow_outer": -0.02}),
        "talk": (slice(420, 440), {"gap": 0.2}),
        "surprise": (slice(450, 460), {"brow_inner": 0.03, "brow_outer": 0.03}),
        "sad": (slice(462, 472), {"brow_inner": 0.02}),
        "wide_eyes": (slice(473, 479), {"eyes": 0.36}),
    }
    for frames, features in where.values():
        show(track, frames, **features)
    states = np.full(480, IDLE, np.uint8)
    states[420:440] = 1
    choices = {choice.shows: choice for choice in choose([track], states=states)}
    assert set(choices) == {"global", "front", "calm", *where}
    for shows, (frames, _) in where.items():
        assert all(frames.start <= frame < frames.stop for frame in choices[shows].frames)
    for choice in choices.values():
        assert all(frame < 88 or frame >= 209 for frame in choice.frames)


def test_turned_head_offers_no_expression() -> None:
    track = person()
    show(track, slice(300, 320), yaw=0.5, smile=0.1, brow_outer=-0.02)
    assert {choice.shows for choice in choose([track])} == {"global", "right", "front", "calm"}


def test_number_of_references_is_bounded_by_kind() -> None:
    track = person()
    show(track, slice(300, 320), yaw=-0.5)
    show(track, slice(330, 350), yaw=0.5)
    few = dataclasses.replace(CONFIG, references=ReferenceConfig(max_views=1, max_expressions=0))
    assert [choice.shows for choice in choose([track], few)] == ["global", "left"]


def test_missing_references_come_from_other_shots_nearest_first() -> None:
    """The clip fills its shot: every reference comes from another shot, and none from its other person."""
    own = person(97, start=100, shot=1)
    before, beside, after = person(90, start=0, shot=0), person(97, start=100, shot=1), person(200, start=210, shot=2)
    blip = person(12, start=197, shot=3)
    show(after, slice(50, 70), smile=0.1)
    choices = choose([own, before, beside, after, blip])
    assert [choice.track for choice in choices if choice.kind == "global"] == [1, 3]
    assert {choice.track for choice in choices if choice.shows == "smile"} == {3}
    assert all(choice.kind == "global" for choice in choices[:2])
    offered = person(480)
    assert {choice.track for choice in choose([offered, before]) if choice.shows in ("global", "front")} == {0}


ROW = np.zeros(len(FEATURES), np.float32)
PERSON, SOMEBODY = np.zeros(128, np.float32), np.full(128, 0.05, np.float32)
"""Two people whose embeddings are 0.57 apart."""


def candidate(seed: int, sharpness: float) -> Candidate:
    row = ROW.copy()
    row[FEATURES.index("sharpness")] = sharpness
    return Candidate(image=lambda: noise(seed), row=row)


def pick(
    candidates: dict[int, Candidate],
    clip: list[np.ndarray],
    faces: dict[int, np.ndarray] | None = None,
    tracks: tuple[int, ...] = (0,),
    people: tuple[np.ndarray, ...] = (PERSON,),
) -> int | None:
    """Return the picked frame of candidates 1, 2, 3, offered by each of the tracks."""
    embeddings = {one.image().tobytes(): (faces or {}).get(frame) for frame, one in candidates.items()}
    picker = ReferencePicker(CONFIG, np.array(people), 0.28, lambda image, row: embeddings[image.tobytes()])
    choices = [
        Choice(kind="global", shows="global", track=track, frames=list(candidates), openness=[1.0] * len(candidates))
        for track in tracks
    ]
    given = {(track, frame): one for track in tracks for frame, one in candidates.items()}
    picked = picker.pick(0, choices, given, np.stack([thumbnail(image) for image in clip]))
    return picked[0].frame if picked else None


def test_copies_of_the_clip_are_never_picked_however_sharp() -> None:
    clip = [noise(0), noise(1)]
    brighter = np.clip(cv2.GaussianBlur(noise(1), (3, 3), 0).astype(int), 0, 250).astype(np.uint8)
    copies = {
        1: candidate(0, 9.0),
        2: candidate(1, 8.0),
        3: candidate(7, 0.1),
    }
    assert pick(copies, clip) == 3
    assert pick({key: copies[key] for key in (1, 2)}, clip) is None
    assert image_distance(brighter, np.stack([thumbnail(p) for p in clip])) < 0.1


def test_image_distance_ignores_brightness() -> None:
    clip = noise(3) // 2
    assert (
        image_distance(clip + 40, thumbnail(clip)[None]) < 0.005 < image_distance(noise(4) // 2, thumbnail(clip)[None])
    )


def test_sharpest_candidate_of_the_same_person_is_picked() -> None:
    candidates = {n: candidate(10 + n, float(n)) for n in (1, 2, 3)}
    assert pick(candidates, [noise(0)]) == 3
    assert pick(candidates, [noise(0)], {1: PERSON, 2: PERSON, 3: SOMEBODY}) == 2
    assert pick(candidates, [noise(0)], dict.fromkeys((1, 2, 3), SOMEBODY)) is None


def test_references_from_other_shots_need_a_matching_face() -> None:
    candidates, faces = {1: candidate(11, 1.0)}, {1: PERSON}
    unknown = np.full(128, np.nan, np.float32)
    assert pick(candidates, [noise(0)], faces, tracks=(1,), people=(PERSON, PERSON)) == 1
    assert pick(candidates, [noise(0)], faces, tracks=(1,), people=(PERSON, SOMEBODY)) is None
    assert pick(candidates, [noise(0)], faces, tracks=(1,), people=(PERSON, unknown)) is None
    assert pick(candidates, [noise(0)], faces, tracks=(0,), people=(unknown,)) == 1


def test_still_video_has_no_references(sides: list[Path], config: CurationConfig, tmp_path: Path) -> None:
    """Every frame of a still video is a copy of every clip's frames."""
    frame = next(frame.rgb for number, frame, _ in video_frames(sides[0], config.limits) if number == 0)
    still = write_video(tmp_path / "still.mp4", [frame] * 200)
    lenient = dataclasses.replace(
        config,
        min_retention=0.0,
        require_audio=False,
        thresholds={"max_frozen_s": None, "min_confidence": None},
    )
    raw = make_raw(tmp_path / "raw", [still, sides[1]], conversation_id=None, camera=None)
    result = curate(raw, tmp_path / "dataset", lenient, NoProgress())
    assert not result.rejected
    rows = read_rows(tmp_path / "dataset" / "manifest.parquet")
    reasons = {row["reason"] for row in rows if row["source_id"] == "still"}
    assert reasons == {"references_are_copies"}, result.funnel
    assert any(row["kept"] for row in rows if row["source_id"] != "still")


def test_shots_of_one_person_share_references(sides: list[Path], config: CurationConfig, tmp_path: Path) -> None:
    """Each shot is too short for references of its own; between the two shots of one person is one of another."""
    first, second = ([frame.rgb for _, frame, _ in video_frames(side, config.limits)] for side in sides)
    video = write_video(tmp_path / "video.mp4", [*first[:60], *second[:60], *first[180:240]])
    lenient = dataclasses.replace(
        config,
        min_retention=0.0,
        require_audio=False,
        states=StateConfig(min_discard_s=100.0),  # the video is silent, and mouths move
        thresholds={"min_confidence": None, "max_inset_ratio": None},
        identity=IdentityConfig(max_rendered_distance=0.3),  # faces this small are up to 0.33 from themselves
    )
    curate(make_raw(tmp_path / "raw", [video]), tmp_path / "dataset", lenient, NoProgress())
    rows = {row["track"]: row for row in read_rows(tmp_path / "dataset" / "manifest.parquet")}
    assert [rows[track]["kept"] for track in (0, 1, 2)] == [True, False, True]
    assert rows[1]["reason"] == "no_reference"
    for track, other in ((0, 2), (2, 0)):
        assert {reference["track"] for reference in rows[track]["references"]} == {other}
        assert rows[track]["references"][0]["kind"] == "global"
        assert rows[track]["references"][0]["identity_distance"] < 0.36


@pytest.mark.parametrize("values", [{"max_views": 5}, {"min_distance": 2.0}, {"candidates": 0}])
def test_reference_config_rejects_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"references\."):
        ReferenceConfig(**values)


def test_clip_store_reads_candidates_from_disk(tmp_path: Path) -> None:
    store = ClipStore(tmp_path)
    given = [noise(seed)[: 20 + seed] for seed in range(5)]
    readers = [store.add_candidate(image) for image in given]
    for at in (3, 0, 4, 0):
        assert np.array_equal(readers[at](), given[at])
    store.drop_candidates()
    assert list(tmp_path.iterdir()) == []
