"""Second pass over one source: cut, crop, score, decide, encode. Gives manifest rows and the members of its shards."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.measured import Captioner, MeasuredCaptioner
from components.curate.clips.clip_frames import footage, needs
from components.curate.clips.decide import decide
from components.curate.clips.encode import LatentEncoder
from components.curate.clips.plan import Crops, Plan, plan_clips, rows_of
from components.curate.clips.references import NEAR_COPY, NO_REFERENCE, Candidate, Picked, Picker
from components.curate.clips.rows import clip_facts, clip_sounds, clip_tracks, clip_view, seen_of, shard_json
from components.curate.clips.store import ClipStore
from components.curate.config import CurationConfig
from components.curate.labels.pairing import Labelled
from components.curate.scorers import score_clip
from components.curate.scorers.base import Scorer
from components.curate.video import identity
from components.curate.video.analysis import Analysis
from components.curate.video.image_similarity import thumbnail
from components.curate.video.roi_cache import Cutouts
from components.runtime import part_timing
from lpm_model.config import VIDEO_FPS

_ROWS = "manifest rows"
"""Part of the cost."""
_SHARED_REFERENCES = 128
"""References whose latents are kept for the next clips."""

Pictures = dict[tuple[int, int], Candidate]
"""Candidates of references by (track, frame)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """All that the second pass over a source reads."""

    raw: Path
    """Corpus folder."""
    own: Analysis
    """First pass of the source."""
    labelled: Labelled
    """States of its people."""
    partner: Analysis | None
    """First pass of the partner's camera, where it could be aligned."""
    config: CurationConfig
    """Settings."""
    encoder: LatentEncoder
    """Pixels to latents."""
    captioner: Captioner
    """Says what kept clips show."""
    scorers: tuple[Scorer, ...]
    """What measures the clips."""
    cutouts: Cutouts
    """Pictures that the first pass kept."""
    copied: NDArray[np.bool_]
    """Frames of the source that an earlier source shows as well [frames]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceClips:
    """What one source contributes, but for what is in its store."""

    rows: list[dict[str, Any]]
    """Manifest rows, kept and dropped."""
    track_reasons: dict[str, int]
    """People that gave no clip, by reason."""
    frame_reasons: dict[str, int]
    """Person-frames that are in no clip, by reason."""
    person_frames: int
    """Frames of all people together."""
    embeddings: NDArray[np.float32]
    """Who each track shows, [tracks, 128]; NaN where nobody looked or no network is there."""


def make_clips(inputs: Inputs, store: ClipStore) -> SourceClips:
    """Cut one source into clips and encode those that pass every threshold."""
    own = inputs.own
    crops = Crops(own, inputs.config)
    with part_timing.part("plans"):
        plans, track_reasons, frame_reasons = plan_clips(own, inputs.labelled, inputs.config, crops)
    faces: dict[int, list[NDArray[np.float32]]] = {}
    pictures = _second_pass(plans, inputs, crops, store, faces)
    people = identity.mean_embeddings(faces, len(own.tracks))
    plans = [plan for plan in plans if plan.row]
    _settle(plans, pictures, people, inputs, store)
    store.drop_candidates()
    return SourceClips(
        rows=[plan.row for plan in plans],
        track_reasons=track_reasons,
        frame_reasons=frame_reasons,
        person_frames=sum(len(track.values) for track in own.tracks),
        embeddings=people,
    )


def _second_pass(
    plans: list[Plan], inputs: Inputs, crops: Crops, store: ClipStore, faces: dict[int, list[NDArray[np.float32]]]
) -> Pictures:
    """Stream the frames once more; finishes every clip and gives the candidates of all references.

    `faces` takes in the embeddings of each track's best frames.
    """
    own, config = inputs.own, inputs.config
    asked = needs(plans, own, crops, config)
    pictures: Pictures = {}
    waiting = sorted(plans, key=lambda plan: plan.start, reverse=True)
    live: list[Plan] = []
    frames = footage(inputs.raw / own.source.file, config.limits, asked, inputs.cutouts, config.size_px)
    for number, picture in frames:
        while waiting and waiting[-1].start <= number:
            live.append(waiting.pop())
        for plan in live:
            with part_timing.part("crops"):
                plan.pictures.append(plan.crop.cut(picture, config.size_px))
        for index, square in asked.faces.get(number, ()):
            with part_timing.part("identity"):
                row = rows_of(own.tracks[index], number, number + 1)[0]
                face = identity.recognise(picture, square, row)
            faces.setdefault(index, []).extend([] if face is None else [face])
        for index, crop in asked.references.get(number, ()):
            with part_timing.part("pictures for references"):
                row = rows_of(own.tracks[index], number, number + 1)[0]
                pictures[index, number] = Candidate(
                    picture=store.candidate(crop.cut(picture, config.size_px)), row=crop.moved(row, config.size_px)
                )
        for plan in [plan for plan in live if plan.stop == number + 1]:
            live.remove(plan)
            _finish(plan, inputs, store)
    return pictures


def _finish(plan: Plan, inputs: Inputs, store: ClipStore) -> None:
    """Score a clip whose frames are complete, decide, and encode it when it is kept."""
    own, labelled, config = inputs.own, inputs.labelled, inputs.config
    with part_timing.part("crops"):
        clip = np.stack(plan.pictures)
    plan.pictures = []
    with part_timing.part(_ROWS):
        view = clip_view(plan, clip, own, labelled, inputs.copied, config)
    scores = score_clip(inputs.scorers, view)
    reasons = decide(scores, config.active_thresholds)
    if not reasons and config.require_reference and not plan.choices:
        reasons = [NO_REFERENCE]
    captioner = MeasuredCaptioner() if reasons else inputs.captioner
    with part_timing.part("captions"):
        said = captioner.caption(seen_of(plan, clip, own, labelled))
    with part_timing.part(_ROWS):
        facts = {**clip_facts(plan, own, labelled, inputs.partner, config), **clip_tracks(plan, own)}
    plan.row = {
        **facts,
        **scores,
        "caption": said.text,
        "caption_fields": said.as_json(),
        "kept": not reasons,
        "reason": (reasons or [""])[0],
        "reasons": reasons,
    }
    with part_timing.part("previews"):
        store.preview(plan.clip_id, np.concatenate([clip[int(at)] for at in np.linspace(0, len(clip) - 1, 4)], axis=1))
    if not reasons:
        with part_timing.part("latents"):
            latents = inputs.encoder.encode(clip)
        with part_timing.part("thumbnails"):
            thumbnails = np.stack([thumbnail(picture) for picture in clip])
        with part_timing.part("writing clips"):
            store.wait(plan.clip_id, latents=latents, thumbnails=thumbnails)
        plan.waits = True


def _settle(
    plans: list[Plan], pictures: Pictures, people: NDArray[np.float32], inputs: Inputs, store: ClipStore
) -> None:
    """Shard members of the kept clips; a clip whose global reference turns out a copy is dropped after all."""
    taker = Picker(inputs.config, people, inputs.config.identity.limit(inputs.own.source.origin))
    references = _References(pictures, inputs.encoder)
    for plan in plans:
        if not plan.waits:
            continue
        with part_timing.part("writing clips"):
            clip = store.waiting(plan.clip_id)
        with part_timing.part("references"):
            picked = taker.pick(plan.track, plan.choices, pictures, clip["thumbnails"])
        if inputs.config.require_reference and not picked:
            reason = NEAR_COPY if any(choice.track == plan.track for choice in plan.choices) else NO_REFERENCE
            plan.row |= {"kept": False, "reason": reason, "reasons": [reason]}
            continue
        members = _members(plan, clip["latents"], picked, references, inputs)
        with part_timing.part("writing clips"):
            store.members(plan.clip_id, members)


class _References:
    """Latents of reference pictures; clips of one person, which follow each other, share many of them."""

    def __init__(self, pictures: Pictures, encoder: LatentEncoder) -> None:
        self._pictures, self._encoder = pictures, encoder
        self.latents = functools.lru_cache(_SHARED_REFERENCES)(self._latents)

    def _latents(self, place: tuple[int, int]) -> NDArray[np.float16]:
        """Latents [C, h, w] of the candidate at (track, frame)."""
        with part_timing.part("latents of references"):
            return self._encoder.encode(self._pictures[place].picture()[None])[:, 0]


def _members(
    plan: Plan, latents: NDArray[np.float16], picked: list[Picked], known: _References, inputs: Inputs
) -> dict[str, Any]:
    """Shard members of a kept clip; fills the row's references."""
    config = inputs.config
    plan.row["references"] = [
        {
            "kind": one.choice.kind,
            "shows": one.choice.shows,
            "track": one.choice.track,
            "frame": one.frame,
            "seconds_away": round(_distance(plan, one.frame) / VIDEO_FPS, 6),
            "copy_distance": round(one.distance, 6),
            "identity_distance": None if one.identity_distance is None else round(one.identity_distance, 4),
        }
        for one in picked
    ]
    with part_timing.part("sounds"):
        speak, listen = clip_sounds(plan, inputs.own, inputs.labelled, inputs.partner, config)
    channels, _, height, width = latents.shape
    references = [known.latents((one.choice.track, one.frame)) for one in picked]
    return {
        "latents": latents,
        "references": np.stack(references) if references else np.zeros((0, channels, height, width), np.float16),
        "speak": speak,
        "listen": listen,
        "json": shard_json(plan, config.size_px),
    }


def _distance(plan: Plan, frame: int) -> int:
    """Frames between a clip and a frame outside it."""
    return plan.start - frame if frame < plan.start else frame - plan.stop + 1
