"""Second pass over one source: cut, crop, score, decide, encode. Gives manifest rows and the members of its shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate import identity, quality
from components.curate.analyse import Analysis
from components.curate.captions import Captioner, MeasuredCaptioner
from components.curate.config import CurationConfig
from components.curate.decode import video_frames
from components.curate.encode import LatentEncoder
from components.curate.likeness import thumbnail
from components.curate.pairing import Labelled
from components.curate.picture import Picture
from components.curate.plan import Crops, Plan, plan_clips, rows_of
from components.curate.references import NEAR_COPY, Candidate, Picked, picker
from components.curate.rows import clip_facts, clip_sounds, clip_tracks, clip_view, seen_of, shard_json
from components.curate.scorers import score_clip
from components.curate.scorers.base import Scorer
from components.curate.store import ClipStore
from lpm_model.config import VIDEO_FPS

_SHARPNESS_EVERY = 6

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
    plans, track_reasons, frame_reasons = plan_clips(own, inputs.labelled, inputs.config, crops)
    maker = _Maker(inputs, store, crops)
    _second_pass(plans, maker)
    plans = [plan for plan in plans if plan.row]
    for plan in plans:
        if plan.waits:
            maker.settle(plan, store.waiting(plan.clip_id))
    return SourceClips(
        rows=[plan.row for plan in plans],
        track_reasons=track_reasons,
        frame_reasons=frame_reasons,
        person_frames=sum(len(track.values) for track in own.tracks),
        embeddings=identity.mean_embeddings(maker.faces, len(own.tracks)),
    )


def _second_pass(plans: list[Plan], maker: "_Maker") -> None:
    """Stream the frames once more; finishes every clip and keeps the candidates of all references."""
    own, config = maker.inputs.own, maker.inputs.config
    wanted: dict[int, set[int]] = {}
    for plan in plans:
        for frame in plan.wanted:
            wanted.setdefault(frame, set()).add(plan.track)
    known = identity.frames_by_number(own.tracks, {plan.track for plan in plans}, config.identity.frames)
    waiting = sorted(plans, key=lambda plan: plan.start, reverse=True)
    live: list[Plan] = []
    last = max([0, *(plan.stop for plan in plans), *(frame + 1 for frame in (*wanted, *known))])
    for number, picture, _ in video_frames(maker.inputs.raw / own.source.file, config.limits):
        if number >= last:
            break
        while waiting and waiting[-1].start <= number:
            live.append(waiting.pop())
        for plan in live:
            plan.pictures.append(plan.crop.cut(picture, config.size_px))
            if (number - plan.start) % _SHARPNESS_EVERY == 0:
                plan.sharp.append(quality.sharpness(picture, rows_of(own.tracks[plan.track], number, number + 1)[0]))
        for index in known.get(number, ()):
            maker.recognise(index, number, picture)
        for index in sorted(wanted.get(number, ())):
            maker.keep_candidate(index, number, picture)
        for plan in [plan for plan in live if plan.stop == number + 1]:
            live.remove(plan)
            maker.finish(plan, number)


class _Maker:
    """Makes clips of the pictures that stream by."""

    def __init__(self, inputs: Inputs, store: ClipStore, crops: Crops) -> None:
        self.inputs, self._store, self._crops = inputs, store, crops
        self.faces: dict[int, list[NDArray[np.float32]]] = {}
        """Embeddings of each track's best frames."""
        self._pictures: Pictures = {}
        self._picker = picker(inputs.config)
        self._references: dict[tuple[int, int], NDArray[np.float16]] = {}

    def recognise(self, index: int, number: int, picture: Picture) -> None:
        """Embed the face of a track on this frame."""
        face = identity.embed(picture.rgb, rows_of(self.inputs.own.tracks[index], number, number + 1)[0])
        self.faces.setdefault(index, []).extend([] if face is None else [face])

    def keep_candidate(self, index: int, number: int, picture: Picture) -> None:
        """Keep a track's picture on this frame: some clip may take it as a reference."""
        crop = self._crops.of(index, number, number + 1)
        box = rows_of(self.inputs.own.tracks[index], number, number + 1)[0]
        self._pictures[index, number] = Candidate(
            picture=crop.cut(picture, self.inputs.config.size_px), sharpness=quality.sharpness(picture, box)
        )

    def finish(self, plan: Plan, number: int) -> None:
        """Score a clip whose frames are complete, decide, and encode it when it is kept."""
        inputs, own, config = self.inputs, self.inputs.own, self.inputs.config
        clip = np.stack(plan.pictures)
        plan.pictures = []
        scores = score_clip(inputs.scorers, clip_view(plan, clip, own, inputs.labelled, inputs.copied))
        reasons = quality.decide(scores, config.active_thresholds)
        if not reasons and config.require_reference and not plan.choices:
            reasons = ["no_reference"]
        captioner = MeasuredCaptioner() if reasons else inputs.captioner
        said = captioner.caption(seen_of(plan, clip, own, inputs.labelled))
        plan.row = {
            **clip_facts(plan, own, inputs.labelled, inputs.partner, config),
            **clip_tracks(plan, own),
            **scores,
            "caption": said.text,
            "caption_fields": said.as_json(),
            "kept": not reasons,
            "reason": (reasons or [""])[0],
            "reasons": reasons,
        }
        strip = [clip[int(at)] for at in np.linspace(0, len(clip) - 1, 4)]
        self._store.preview(plan.clip_id, np.concatenate(strip, axis=1))
        if reasons:
            return
        shown = {"thumbnails": np.stack([thumbnail(one) for one in clip]), "middle": clip[len(clip) // 2]}
        if max(plan.wanted, default=0) <= number:  # all candidates are here: no need to wait, or to encode in vain
            self.settle(plan, shown, clip)
        else:
            plan.waits = True
            self._store.wait(plan.clip_id, latents=inputs.encoder.encode(clip), **shown)

    def settle(self, plan: Plan, shown: dict[str, NDArray[Any]], clip: NDArray[np.uint8] | None = None) -> None:
        """Pick the references and keep the members; a clip whose global one would be a copy is dropped after all.

        Args:
            plan: a clip that passed every threshold.
            shown: its thumbnails and middle frame, and its latents unless `clip` is given.
            clip: its frames [T, S, S, 3].
        """
        config = self.inputs.config
        face = self._picker.face(plan.track, shown["middle"]) if plan.choices else None
        picked = self._picker.pick(plan.track, plan.choices, self._pictures, face, shown["thumbnails"])
        if config.require_reference and not picked:
            plan.row |= {"kept": False, "reason": NEAR_COPY, "reasons": [NEAR_COPY]}
            return
        latents = shown["latents"] if clip is None else self.inputs.encoder.encode(clip)
        self._store.members(plan.clip_id, self._members(plan, latents, picked))

    def _members(self, plan: Plan, latents: NDArray[Any], picked: list[Picked]) -> dict[str, Any]:
        """Shard members of a kept clip; fills the row's references."""
        inputs, config = self.inputs, self.inputs.config
        plan.row["references"] = [
            {
                "kind": one.choice.kind,
                "shows": one.choice.shows,
                "frame": one.frame,
                "seconds_away": round(_distance(plan, one.frame) / VIDEO_FPS, 6),
                "copy_distance": round(one.distance, 6),
                "similarity": None if one.similarity is None else round(one.similarity, 4),
            }
            for one in picked
        ]
        speak, listen = clip_sounds(plan, inputs.own, inputs.labelled, inputs.partner, config)
        channels, _, height, width = latents.shape
        references = [self._reference(plan.track, one.frame) for one in picked]
        return {
            "latents": latents,
            "references": np.stack(references) if references else np.zeros((0, channels, height, width), np.float16),
            "speak": speak,
            "listen": listen,
            "json": shard_json(plan, config.size_px),
        }

    def _reference(self, track: int, frame: int) -> NDArray[np.float16]:
        """Latents [C, h, w] of one candidate; clips of one person share many."""
        if (track, frame) not in self._references:
            picture = self._pictures[track, frame].picture
            self._references[track, frame] = self.inputs.encoder.encode(picture[None])[:, 0]
        return self._references[track, frame]


def _distance(plan: Plan, frame: int) -> int:
    """Frames between a clip and a frame outside it."""
    return plan.start - frame if frame < plan.start else frame - plan.stop + 1
