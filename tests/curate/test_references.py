"""References: outside the span, never a copy of it, sharp and open, of the same person, by slot."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from components.common import NoProgress
from components.curate.config import CurationConfig, Thresholds
from components.curate.decode import video_frames
from components.curate.faces import FEATURES, Track
from components.curate.likeness import copy_distance, thumbnail
from components.curate.manifest import IDLE, read_rows
from components.curate.options import ReferenceConfig
from components.curate.references import EXPRESSIONS, VIEWS, Candidate, Choice, Picker, choose_references, rank
from components.curate.step import curate
from lpm_model.config import REFERENCE_KINDS
from tests.curate.corpus import make_raw, write_video

CONFIG = CurationConfig(max_references=13)


def person(frames: int = 480) -> Track:
    values = np.zeros((frames, len(FEATURES)), np.float32)
    values[:, FEATURES.index("x1")] = values[:, FEATURES.index("y1")] = 60
    values[:, FEATURES.index("eyes")] = 0.3
    return Track(start=0, shot=0, values=values)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def test_every_slot_is_a_kind_that_the_model_knows() -> None:
    slots = [*VIEWS.values(), *EXPRESSIONS.values()]
    assert set(slots) <= set(REFERENCE_KINDS)
    assert len(set(slots)) == len(slots)


def test_views_and_expressions_are_found_by_angle_and_form() -> None:
    track = person()
    for frames, name, value in (
        (slice(300, 320), "yaw", -0.5),
        (slice(330, 350), "yaw", 0.6),
        (slice(360, 380), "smile", 0.1),
        (slice(390, 410), "smile", -0.1),
        (slice(420, 440), "gap", 0.2),
    ):
        track.values[frames, FEATURES.index(name)] = value
    states = np.full(480, IDLE, np.uint8)
    states[420:440] = 1
    choices = {choice.shows: choice for choice in choose_references(rank(track, states), 100, 97, CONFIG)}
    assert set(choices) == {"global", "left", "right", "smile", "frown", "talk", "front", "calm"}
    for shows, low, high in (("left", 300, 320), ("right", 330, 350), ("smile", 360, 380), ("frown", 390, 410)):
        assert all(low <= frame < high for frame in choices[shows].frames)
    for choice in choices.values():
        assert all(frame < 88 or frame >= 209 for frame in choice.frames)


def test_how_many_is_bounded_by_kind() -> None:
    track = person()
    track.values[300:320, FEATURES.index("yaw")] = -0.5
    track.values[330:350, FEATURES.index("yaw")] = 0.5
    few = dataclasses.replace(CONFIG, references=ReferenceConfig(max_views=1, max_expressions=0))
    shown = [choice.shows for choice in choose_references(rank(track, np.zeros(480, np.uint8)), 100, 97, few)]
    assert shown == ["global", "left"]


def pick(
    pictures: dict[int, Candidate], clip: list[np.ndarray], faces: dict[int, np.ndarray] | None = None
) -> int | None:
    """The frame that is taken of candidates 1, 2, 3."""
    known = {id(one.picture): (faces or {}).get(frame) for frame, one in pictures.items()}
    taker = Picker(CONFIG, lambda picture: known[id(picture)])
    choice = Choice(kind="global", shows="global", frames=list(pictures), openness=[1.0] * len(pictures))
    given = {(0, frame): one for frame, one in pictures.items()}
    thumbnails = np.stack([thumbnail(picture) for picture in clip])
    taken = taker.pick(0, [choice], given, np.array([1.0, 0.0], np.float32) if faces else None, thumbnails)
    return taken[0].frame if taken else None


def test_a_copy_of_a_training_frame_is_never_taken_however_sharp() -> None:
    clip = [noise(0), noise(1)]
    brighter = np.clip(cv2.GaussianBlur(noise(1), (3, 3), 0).astype(int), 0, 250).astype(np.uint8)
    copies = {
        1: Candidate(picture=clip[0].copy(), sharpness=9.0),
        2: Candidate(picture=clip[1], sharpness=8.0),
        3: Candidate(picture=noise(7), sharpness=0.1),
    }
    assert pick(copies, clip) == 3
    assert pick({key: copies[key] for key in (1, 2)}, clip) is None
    assert copy_distance(brighter, np.stack([thumbnail(p) for p in clip])) < 0.1


def test_a_brighter_copy_is_a_copy() -> None:
    clip = noise(3) // 2
    assert copy_distance(clip + 40, thumbnail(clip)[None]) < 0.005 < copy_distance(noise(4) // 2, thumbnail(clip)[None])


def test_the_sharper_one_wins_and_somebody_else_never_does() -> None:
    pictures = {n: Candidate(picture=noise(10 + n), sharpness=float(n)) for n in (1, 2, 3)}
    assert pick(pictures, [noise(0)]) == 3
    same, other = np.array([0.9, 0.436], np.float32), np.array([0.1, 0.995], np.float32)
    assert pick(pictures, [noise(0)], {1: same, 2: same, 3: other}) == 2
    assert pick(pictures, [noise(0)], {1: other, 2: other, 3: other}) is None


def test_a_still_video_gives_no_clip(sides: list[Path], config: CurationConfig, tmp_path: Path) -> None:
    """Every picture of a still video is a copy of every clip's frames."""
    frame = next(picture.rgb for number, picture, _ in video_frames(sides[0], config.limits) if number == 0)
    still = write_video(tmp_path / "still.mp4", [frame] * 200)
    lenient = dataclasses.replace(
        config,
        min_retention=0.0,
        require_audio=False,
        thresholds=dataclasses.replace(Thresholds(), max_frozen_s=None, min_confidence=None),
    )
    raw = make_raw(tmp_path / "raw", [still, sides[1]], conversation_id=None, camera=None)
    result = curate(raw, tmp_path / "dataset", lenient, NoProgress())
    assert not result.rejected
    rows = read_rows(tmp_path / "dataset" / "manifest.parquet")
    reasons = {row["reason"] for row in rows if row["source_id"] == "still"}
    assert reasons == {"references_are_copies"}, result.funnel
    assert any(row["kept"] for row in rows if row["source_id"] != "still")


@pytest.mark.parametrize("values", [{"max_views": 5}, {"min_distance": 2.0}, {"candidates": 0}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="references wants"):
        ReferenceConfig(**values)
