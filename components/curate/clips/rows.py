"""Values derived from a clip: the inputs of scorers and captioners, its manifest row, its audio and shard metadata."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.expressions import neutral_face
from components.curate.captions.measured import CaptionInput
from components.curate.clips.plan import Plan
from components.curate.config import CurationConfig
from components.curate.labels.conversation import conversation_facts, offscreen_speech
from components.curate.labels.pairing import SourceLabels
from components.curate.labels.states import gate_audio
from components.curate.scorers.base import ClipView
from components.curate.video.analysis import Analysis
from components.curate.video.crops import others_in
from components.dataset.states import DISCARD, IDLE, LISTEN, SPEAK, encode_states
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS


def clip_view(
    plan: Plan,
    rgb: NDArray[np.uint8],
    analysis: Analysis,
    labelled: SourceLabels,
    copied: NDArray[np.bool_],
    config: CurationConfig,
) -> ClipView:
    """Return the scorers' input for a finished clip.

    Args:
        plan: track and frames of the clip.
        rgb: its cropped frames, uint8 [T, S, S, 3].
        analysis: analysis of the source.
        labelled: states of its people.
        copied: frames of the source that duplicate an earlier source, bool [frames].
        config: settings.
    """
    track, labels = analysis.tracks[plan.track], labelled.labels[plan.track]
    part = plan.within(track)
    return ClipView(
        analysis=analysis,
        start=plan.start,
        rgb=rgb,
        crop=plan.crop,
        track=track,
        others=others_in(analysis.tracks, plan.track, plan.start, plan.stop),
        states=labels.states[part],
        confidence=labels.confidence[part],
        copied=copied[plan.start : plan.stop],
        offscreen_speech=offscreen_speech(plan.track, analysis, labelled, config.intervals)[plan.start : plan.stop],
    )


def clip_facts(
    plan: Plan, analysis: Analysis, labelled: SourceLabels, partner: Analysis | None, config: CurationConfig
) -> dict[str, Any]:
    """Return all manifest columns that are not scores, tracks or captions."""
    source, track = analysis.source, analysis.tracks[plan.track]
    part = plan.within(track)
    states = labelled.labels[plan.track].states[part]
    rows = track.values[part]
    person = (
        source.person_hint if source.person_hint and len(analysis.tracks) == 1 else f"{source.source_id}.p{plan.track}"
    )
    return {
        **{name: getattr(source, name) for name in ("source_id", "file", "origin", "licence", "consent_ref")},
        "source_sha256": source.sha256,
        "conversation_id": source.conversation_id,
        "camera": source.camera,
        "clip_id": plan.clip_id,
        "person_id": person,
        "track": plan.track,
        "shot": track.shot,
        "start_frame": plan.start,
        "frames": plan.frames,
        "seconds": round(plan.frames / VIDEO_FPS, 6),
        "states": encode_states(states),
        "speak_ratio": round(float((states == SPEAK).mean()), 6),
        "listen_ratio": round(float((states == LISTEN).mean()), 6),
        "idle_ratio": round(float((states == IDLE).mean()), 6),
        "partner_source_id": partner.source.source_id if partner else None,
        "camera_offset_samples": labelled.offset_samples,
        **conversation_facts(plan.track, plan.start, plan.stop, analysis, labelled, config.intervals),
        "crop_box": [plan.crop.x, plan.crop.y, plan.crop.side, plan.crop.side],
        "face_box": [int(v) for v in np.median(rows[:, :4], axis=0)],
        "resampled": plan.crop.side != config.size_px,
        "audio_start_sample": (plan.start + 1) * SAMPLES_PER_FRAME,
        "audio_samples": (plan.frames - 1) * SAMPLES_PER_FRAME,
        "speak_from": source.source_id,
        "listen_from": partner.source.source_id if partner and config.listen_from == "partner" else source.source_id,
        "references": [],
        "shard": "",
    }


def caption_input(plan: Plan, rgb: NDArray[np.uint8], analysis: Analysis, labelled: SourceLabels) -> CaptionInput:
    """Return the captioner's input for a clip."""
    track, span = analysis.tracks[plan.track], slice(plan.start, plan.stop)
    part, states = plan.within(track), labelled.labels[plan.track].states
    rows = track.values[part]
    return CaptionInput(
        states=states[part],
        speech=analysis.speech[span],
        loudness_db=analysis.loudness[span],
        audio=analysis.track[plan.start * SAMPLES_PER_FRAME : plan.stop * SAMPLES_PER_FRAME],
        features=rows,
        neutral=neutral_face(track, states)[part],
        face_ratio=float(np.nanmedian(rows[:, 3] - rows[:, 1])) / plan.crop.side,
        rgb=rgb,
    )


def clip_tracks(plan: Plan, analysis: Analysis) -> dict[str, list[int]]:
    """Return the tracks that pages plot, one byte per frame: speech 0..1, mouth gap 0..0.5 eye distances, -60..0 dB."""
    track = analysis.tracks[plan.track]
    gap = track.column("gap")[plan.within(track)]
    span = slice(plan.start, plan.stop)
    fractions = {
        "speech_track": analysis.speech[span],
        "mouth_track": np.nan_to_num(gap) / 0.5,
        "loudness_track": analysis.loudness[span] / 60 + 1,
    }
    return {name: np.round(255 * np.clip(values, 0, 1)).astype(int).tolist() for name, values in fractions.items()}


def clip_audio(
    plan: Plan, analysis: Analysis, labelled: SourceLabels, partner: Analysis | None, config: CurationConfig
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return the speaker-only and the listener-only audio of a clip, int16 [(frames - 1) * 1000] each.

    Both are one microphone's mixture, muted while the other side speaks; idle parts stay in both. The listener-only
    audio comes from the partner's own microphone where there is one, as a user's microphone will send it.
    """
    track = analysis.tracks[plan.track]
    states = labelled.labels[plan.track].states[plan.start + 1 - track.start : plan.stop - track.start]
    start, stop = (plan.start + 1) * SAMPLES_PER_FRAME, plan.stop * SAMPLES_PER_FRAME
    mixture = analysis.track[start:stop]
    speak = gate_audio(mixture, states, LISTEN, SAMPLES_PER_FRAME)
    if partner is None or labelled.partner is None or config.listen_from == "own":
        return speak, gate_audio(mixture, states, SPEAK, SAMPLES_PER_FRAME)
    partner_states = labelled.partner[plan.start + 1 : plan.stop].copy()
    partner_states[partner_states == DISCARD] = IDLE  # discarded frames keep their audio
    partner_audio = np.zeros(stop - start, np.int16)
    a, b = start + labelled.offset_samples, stop + labelled.offset_samples
    low, high = max(a, 0), min(b, len(partner.track))
    if high > low:
        partner_audio[low - a : high - a] = partner.track[low:high]
    return speak, gate_audio(partner_audio, partner_states, LISTEN, SAMPLES_PER_FRAME)


def shard_json(plan: Plan, size_px: int) -> dict[str, Any]:
    """Return the `.json` member of a kept clip."""
    row = plan.row
    return {
        "frames": plan.frames,
        "caption": row["caption"],
        "states": row["states"],
        "person_id": row["person_id"],
        "source_id": row["source_id"],
        "start_frame": plan.start,
        "reference_kinds": [reference["kind"] for reference in row["references"]],
        "size_px": size_px,
    }
