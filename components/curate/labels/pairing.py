"""Label all people of a source and pair conversation partners, within a shot and across two cameras."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.config import StateConfig
from components.curate.labels.cameras import camera_offset, gap_on_timeline, shift_frames
from components.curate.labels.offset import UNKNOWN, Offset, find_av_offset, mel_bands, shift_audio
from components.curate.labels.speech import loudness_db, speech_probability
from components.curate.labels.states import Labels, discard_dubbed, label_people, sync_score
from components.curate.video.analysis import Analysis
from components.curate.video.faces import Track
from components.dataset.states import LISTEN, SPEAK
from lpm_model.config import SAMPLES_PER_FRAME

_MIN_SEPARATION_DB = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLabels:
    """Labels of all people of one source."""

    labels: list[Labels]
    """One per track of the analysis, in order."""
    partner: NDArray[np.uint8] | None
    """States of the partner in front of the other camera, on this source's frames; None without one."""
    offset_samples: int
    """Sample s of this source's audio is sample s + offset of the partner's."""
    same_shot_partner: list[int | None]
    """For each track the index of the partner's track in the same shot, None without one."""
    offscreen: NDArray[np.bool_]
    """Frames with speech although no visible person (nor the partner) speaks, bool [frames]."""
    av_offset: Offset = UNKNOWN
    """Estimated audio-video offset of the source (`estimate_av_offset`)."""


def louder_microphone(
    own_db: NDArray[np.float32], other_db: NDArray[np.float32], speech: NDArray[np.float32], threshold: float
) -> NDArray[np.float32] | None:
    """Return +1 where the own microphone is clearly louder, -1 where the other is, [frames]; None if undecidable.

    Two microphones have different gains, so the level difference is first split into its two clusters.
    """
    difference = _smooth(own_db - other_db)
    chosen = difference[(speech > threshold) & (np.maximum(own_db, other_db) > -55.0)]
    if len(chosen) < 24:
        return None
    low, high = np.percentile(chosen, [10, 90])
    for _ in range(20):
        upper = chosen > (low + high) / 2
        if upper.all() or not upper.any():
            return None
        low, high = chosen[~upper].mean(), chosen[upper].mean()
    if high - low < _MIN_SEPARATION_DB:
        return None
    return np.asarray(np.clip((difference - (low + high) / 2) / ((high - low) / 2), -1.2, 1.2), np.float32)


def _smooth(values: NDArray[np.float32], width: int = 5) -> NDArray[np.float32]:
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width, np.float32) / width, mode="valid").astype(np.float32)


def label_source(analysis: Analysis, partner: Analysis | None, config: StateConfig) -> SourceLabels:
    """Label every person of a source, using the partner's camera if it can be aligned.

    Speaking itself is decided in `states.decide_speaking`.
    """
    offset = None if partner is None else camera_offset(analysis.track, partner.track, config.max_camera_offset_s)
    gaps = [gap_on_timeline(track, analysis.frames) for track in analysis.tracks]
    if partner is None or offset is None:
        return _labelled(analysis, _by_shot(analysis, gaps, config), None, 0, config)
    frames = round(offset / SAMPLES_PER_FRAME)
    other_speech = shift_frames(partner.speech, frames, analysis.frames, 0.0)
    speech = np.maximum(analysis.speech, other_speech)
    other_db = shift_frames(partner.loudness, frames, analysis.frames, -80.0)
    side = louder_microphone(analysis.loudness, other_db, speech, config.speech_threshold)
    theirs = gap_on_timeline(_main_track(partner), partner.frames)
    theirs = shift_frames(theirs, frames, analysis.frames, float("nan"))
    labels: list[Labels] = []
    other = np.zeros(analysis.frames, np.uint8)
    for shot, (start, stop) in enumerate(analysis.shots):
        inside = [i for i, track in enumerate(analysis.tracks) if track.shot == shot]
        people = [gaps[i][start:stop] for i in inside] + [theirs[start:stop]]
        biggest = max(range(len(inside)), key=lambda n: analysis.tracks[inside[n]].face_px, default=None)
        pair = None if biggest is None else (biggest, len(inside))
        part = None if side is None else side[start:stop]
        found = label_people(speech[start:stop], people, config, loudness_side=part, pair=pair)
        labels += [_clip_labels(found[n], analysis.tracks[i], start) for n, i in enumerate(inside)]
        other[start:stop] = found[-1].states
    return _labelled(analysis, labels, other, offset, config)


def _labelled(
    analysis: Analysis,
    labels: list[Labels],
    partner: NDArray[np.uint8] | None,
    offset_samples: int,
    config: StateConfig,
) -> SourceLabels:
    """Return the labels with the partners and off-screen speech that follow from them."""
    spoken = np.zeros(analysis.frames, bool) if partner is None else partner == SPEAK
    for track, one in zip(analysis.tracks, labels, strict=True):
        spoken[track.start : track.stop] |= one.states == SPEAK
    return SourceLabels(
        labels=labels,
        partner=partner,
        offset_samples=offset_samples,
        same_shot_partner=[_same_shot_partner(index, analysis.tracks, labels) for index in range(len(labels))],
        offscreen=(analysis.speech > config.speech_threshold) & ~spoken,
    )


def estimate_av_offset(analysis: Analysis) -> Offset:
    """Estimate by how many frames a source's audio is late, from the mouths of all its people."""
    return find_av_offset([(track.start, track.column("gap")) for track in analysis.tracks], mel_bands(analysis.track))


def align_audio(analysis: Analysis, frames: int) -> Analysis:
    """Return an analysis with audio that was `frames` late moved into sync."""
    track = shift_audio(analysis.track, frames)
    return dataclasses.replace(analysis, track=track, speech=speech_probability(track), loudness=loudness_db(track))


def _same_shot_partner(index: int, tracks: list[Track], labels: list[Labels]) -> int | None:
    """Return the track in the same shot that most often listens while this one speaks, or speaks while it listens."""
    best, most_frames = None, 0
    for other, track in enumerate(tracks):
        if other == index or track.shot != tracks[index].shot:
            continue
        start, stop = max(track.start, tracks[index].start), min(track.stop, tracks[index].stop)
        own = labels[index].states[start - tracks[index].start : stop - tracks[index].start]
        theirs = labels[other].states[start - track.start : stop - track.start]
        frames = int(((own == SPEAK) & (theirs == LISTEN)).sum() + ((own == LISTEN) & (theirs == SPEAK)).sum())
        if frames > most_frames:
            best, most_frames = other, frames
    return best


def _main_track(analysis: Analysis) -> Track:
    """Return the person a camera films: the most frames in view, weighted by face size."""
    return max(analysis.tracks, key=lambda track: len(track.values) * track.face_px)


def _by_shot(analysis: Analysis, gaps: list[NDArray[np.float32]], config: StateConfig) -> list[Labels]:
    """Label a source without a partner's camera, shot by shot."""
    labels: list[Labels] = []
    for shot, (start, stop) in enumerate(analysis.shots):
        inside = [i for i, track in enumerate(analysis.tracks) if track.shot == shot]
        found = label_people(analysis.speech[start:stop], [gaps[i][start:stop] for i in inside], config)
        for n, i in enumerate(inside):
            track = analysis.tracks[i]
            sync = sync_score(track.column("gap"), analysis.loudness[track.start : track.stop])
            labels.append(discard_dubbed(_clip_labels(found[n], track, start), sync, config))
    return labels


def _clip_labels(labels: Labels, track: Track, start: int) -> Labels:
    """Return the part of a shot's labels in which a track exists."""
    part = slice(track.start - start, track.stop - start)
    return Labels(states=labels.states[part], confidence=labels.confidence[part])
