"""References and shard members of a source's accepted clips."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.clips.encode import LatentEncoder
from components.curate.clips.inputs import Inputs
from components.curate.clips.plan import Plan
from components.curate.clips.references import NEAR_COPY, NO_REFERENCE, Candidate, Picked, ReferencePicker
from components.curate.clips.rows import clip_audio, shard_json
from components.curate.clips.store import ClipStore
from components.runtime import part_timing
from lpm_model.config import VIDEO_FPS

_CACHED_REFERENCES = 128
"""Number of reference latents that are cached for the next clips."""


def add_references(
    plans: list[Plan],
    candidates: dict[tuple[int, int], Candidate],
    embeddings: NDArray[np.float32],
    inputs: Inputs,
    store: ClipStore,
) -> None:
    """Choose the references of the accepted clips and store their shard members.

    A clip whose candidates of a global reference all turn out to be copies is dropped after all.

    Args:
        plans: the source's clips with their manifest rows, to which the references or the drop reason are added.
        candidates: candidates of all references by (track, frame).
        embeddings: identity embedding of each track, float32 [tracks, 128].
        inputs: the source.
        store: holds the encoded clips; receives the members.
    """
    picker = ReferencePicker(inputs.config, embeddings, inputs.config.identity.limit(inputs.analysis.source.origin))
    latents = _ReferenceLatents(candidates, inputs.encoder)
    for plan in plans:
        if not plan.accepted:
            continue
        with part_timing.part("writing clips"):
            clip = store.take_pending(plan.clip_id)
        with part_timing.part("references"):
            picked = picker.pick(plan.track, plan.choices, candidates, clip["thumbnails"])
        if inputs.config.require_reference and not picked:
            reason = NEAR_COPY if any(choice.track == plan.track for choice in plan.choices) else NO_REFERENCE
            plan.row |= {"kept": False, "reason": reason, "reasons": [reason]}
            continue
        plan.row["references"] = [_reference_row(plan, one) for one in picked]
        members = _members(plan, clip["latents"], picked, latents, inputs)
        with part_timing.part("writing clips"):
            store.add_members(plan.clip_id, members)
    store.drop_candidates()


class _ReferenceLatents:
    """Latents of reference images; consecutive clips of one person share many of them."""

    def __init__(self, candidates: dict[tuple[int, int], Candidate], encoder: LatentEncoder) -> None:
        self._candidates, self._encoder = candidates, encoder
        self.of = functools.lru_cache(_CACHED_REFERENCES)(self._encode)

    def _encode(self, place: tuple[int, int]) -> NDArray[np.float16]:
        """Return the latents float16 [C, h, w] of the candidate at (track, frame)."""
        with part_timing.part("reference latents"):
            return self._encoder.encode(self._candidates[place].image()[None])[:, 0]


def _reference_row(plan: Plan, picked: Picked) -> dict[str, Any]:
    """Return the manifest entry of a reference."""
    return {
        "kind": picked.choice.kind,
        "shows": picked.choice.shows,
        "track": picked.choice.track,
        "frame": picked.frame,
        "seconds_away": round(_frames_away(plan, picked.frame) / VIDEO_FPS, 6),
        "copy_distance": round(picked.distance, 6),
        "identity_distance": None if picked.identity_distance is None else round(picked.identity_distance, 4),
    }


def _members(
    plan: Plan, latents: NDArray[np.float16], picked: list[Picked], known: _ReferenceLatents, inputs: Inputs
) -> dict[str, Any]:
    """Return the shard members of a kept clip."""
    with part_timing.part("audio tracks"):
        speak, listen = clip_audio(plan, inputs.analysis, inputs.labelled, inputs.partner, inputs.config)
    channels, _, height, width = latents.shape
    references = [known.of((one.choice.track, one.frame)) for one in picked]
    return {
        "latents": latents,
        "references": np.stack(references) if references else np.zeros((0, channels, height, width), np.float16),
        "speak": speak,
        "listen": listen,
        "json": shard_json(plan, inputs.config.size_px),
    }


def _frames_away(plan: Plan, frame: int) -> int:
    """Return the distance in frames between a clip and a frame outside it."""
    return plan.start - frame if frame < plan.start else frame - plan.stop + 1
