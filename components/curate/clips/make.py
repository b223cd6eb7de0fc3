"""Make the clips of one source: cut, score, decide, caption, encode and store each, then choose its references."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.measured import Caption, MeasuredCaptioner
from components.curate.clips.cut import SourceCrops, cut_clips
from components.curate.clips.decide import reject_reasons
from components.curate.clips.inputs import Inputs
from components.curate.clips.members import add_references
from components.curate.clips.plan import Crops, Plan, plan_clips
from components.curate.clips.references import NO_REFERENCE
from components.curate.clips.rows import caption_input, clip_facts, clip_tracks, clip_view
from components.curate.clips.store import ClipStore
from components.curate.scorers import score_clip
from components.curate.scorers.base import Scores
from components.curate.video import identity
from components.curate.video.image_similarity import thumbnail
from components.runtime import part_timing

_ROWS = "manifest rows"
"""Name of the timed part."""
_PREVIEW_FRAMES = 4
"""Frames of a clip in its preview."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceClips:
    """Rows, counts and embeddings of one source's clips; their files are in its store."""

    rows: list[dict[str, Any]]
    """Manifest rows, kept and dropped."""
    track_reasons: dict[str, int]
    """Number of people without a clip, by reason."""
    frame_reasons: dict[str, int]
    """Number of person-frames in no clip, by reason."""
    person_frames: int
    """Frames of all people together."""
    embeddings: NDArray[np.float32]
    """Identity embedding of each track, float32 [tracks, 128]; NaN where unknown."""


def make_clips(inputs: Inputs, store: ClipStore) -> SourceClips:
    """Make the clips of one source; those that pass every threshold are encoded and stored."""
    crops = Crops(inputs.analysis, inputs.config)
    with part_timing.part("plans"):
        plans, track_reasons, frame_reasons = plan_clips(inputs.analysis, inputs.labelled, inputs.config, crops)
    found = SourceCrops()
    for plan, rgb in cut_clips(plans, inputs, crops, store, found):
        scores = _score(plan, rgb, inputs)
        reasons = _decide(plan, scores, inputs)
        caption = _caption(plan, rgb, reasons, inputs)
        plan.row = _manifest_row(plan, scores, reasons, caption, inputs)
        _store_preview(plan, rgb, store)
        if not reasons:
            _encode(plan, rgb, inputs, store)
    embeddings = identity.mean_embeddings(found.faces, len(inputs.analysis.tracks))
    finished = [plan for plan in plans if plan.row]
    add_references(finished, found.candidates, embeddings, inputs, store)
    return SourceClips(
        rows=[plan.row for plan in finished],
        track_reasons=track_reasons,
        frame_reasons=frame_reasons,
        person_frames=sum(len(track.values) for track in inputs.analysis.tracks),
        embeddings=embeddings,
    )


def _score(plan: Plan, rgb: NDArray[np.uint8], inputs: Inputs) -> Scores:
    with part_timing.part(_ROWS):
        view = clip_view(plan, rgb, inputs.analysis, inputs.labelled, inputs.copied, inputs.config)
    return score_clip(inputs.scorers, view)


def _decide(plan: Plan, scores: Scores, inputs: Inputs) -> list[str]:
    """Return the reasons to drop a clip: missed thresholds, otherwise a missing reference."""
    reasons = reject_reasons(scores, inputs.config.active_thresholds)
    if not reasons and inputs.config.require_reference and not plan.choices:
        return [NO_REFERENCE]
    return reasons


def _caption(plan: Plan, rgb: NDArray[np.uint8], reasons: list[str], inputs: Inputs) -> Caption:
    """Caption a clip; dropped clips get a measured caption, which is cheap."""
    captioner = MeasuredCaptioner() if reasons else inputs.captioner
    with part_timing.part("captions"):
        return captioner.caption(caption_input(plan, rgb, inputs.analysis, inputs.labelled))


def _manifest_row(plan: Plan, scores: Scores, reasons: list[str], caption: Caption, inputs: Inputs) -> dict[str, Any]:
    with part_timing.part(_ROWS):
        facts = clip_facts(plan, inputs.analysis, inputs.labelled, inputs.partner, inputs.config)
        tracks = clip_tracks(plan, inputs.analysis)
    return {
        **facts,
        **tracks,
        **scores,
        "caption": caption.text,
        "caption_fields": caption.as_json(),
        "kept": not reasons,
        "reason": (reasons or [""])[0],
        "reasons": reasons,
    }


def _store_preview(plan: Plan, rgb: NDArray[np.uint8], store: ClipStore) -> None:
    chosen = np.linspace(0, len(rgb) - 1, _PREVIEW_FRAMES)
    with part_timing.part("previews"):
        store.add_preview(plan.clip_id, np.concatenate([rgb[int(at)] for at in chosen], axis=1))


def _encode(plan: Plan, rgb: NDArray[np.uint8], inputs: Inputs, store: ClipStore) -> None:
    """Encode an accepted clip; it waits in the store until the source's reference candidates are complete."""
    with part_timing.part("latents"):
        latents = inputs.encoder.encode(rgb)
    with part_timing.part("thumbnails"):
        thumbnails = np.stack([thumbnail(image) for image in rgb])
    with part_timing.part("writing clips"):
        store.add_pending(plan.clip_id, latents=latents, thumbnails=thumbnails)
    plan.accepted = True
