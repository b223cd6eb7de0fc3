"""Two cameras of one conversation: their clocks, and whose microphone is louder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.analyse import Analysis
from components.curate.config import StateConfig
from components.curate.faces import Track
from components.curate.states import Labels, drop_dubbed, label_people, sync_score
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME

_MIN_SEPARATION_DB = 2.0
_MIN_PEAK = 8.0
"""The match of two microphones has to stand out so far (in robust deviations) from all other offsets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """States of all people of one source."""

    labels: list[Labels]
    """One per track of the analysis."""
    partner: NDArray[np.uint8] | None
    """The partner's states on this source's frames (None without a partner)."""
    offset_samples: int
    """Sample s of this source's sound is sample s + offset of the partner's."""


def camera_offset(own: NDArray[np.int16], other: NDArray[np.int16], max_s: float) -> int | None:
    """Offset in samples between two recordings of one room, None where they do not match.

    Each microphone hears both people, so the phase-weighted cross-correlation has a sharp peak at the offset.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    if not np.any(own) or not np.any(other):
        return None
    size = next_fast_len(len(own) + len(other))
    cross = np.conj(rfft(own.astype(np.float32), size)) * rfft(other.astype(np.float32), size)
    cross /= np.maximum(np.abs(cross), 1e-6 * float(np.abs(cross).max())) ** 0.8
    match = irfft(cross, size)
    reach = min(int(max_s * AUDIO_RATE), size // 2 - 1)
    near = np.concatenate([match[-reach:], match[: reach + 1]])
    peak = int(near.argmax())
    spread = float(np.median(np.abs(near))) / 0.6745 + 1e-12
    return peak - reach if near[peak] > _MIN_PEAK * spread else None


def shift_frames(values: NDArray[np.float32], offset: int, frames: int, fill: float) -> NDArray[np.float32]:
    """Values of another camera on this one's frames: out[f] = values[f + offset], `fill` outside."""
    at = np.arange(frames) + offset
    inside = (at >= 0) & (at < len(values))
    out = np.full(frames, fill, np.float32)
    out[inside] = values[at[inside]]
    return out


def louder_side(
    own_db: NDArray[np.float32], other_db: NDArray[np.float32], speech: NDArray[np.float32], threshold: float
) -> NDArray[np.float32] | None:
    """+1 where the own microphone is clearly louder, -1 where the other is, by frame; None where nobody can tell.

    The levels of two microphones differ anyway, so the two clusters of the difference are found first.
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


def gap_on_timeline(track: Track, frames: int) -> NDArray[np.float32]:
    """A person's mouth gap on all frames of the source, NaN where the face is not seen."""
    out = np.full(frames, np.nan, np.float32)
    out[track.start : track.stop] = track.column("gap")
    return out


def label_source(own: Analysis, partner: Analysis | None, config: StateConfig) -> Labelled:
    """Label every person of a source, using the partner's camera where it can be aligned."""
    offset = None if partner is None else camera_offset(own.track, partner.track, config.max_camera_offset_s)
    gaps = [gap_on_timeline(track, own.frames) for track in own.tracks]
    if partner is None or offset is None:
        return Labelled(labels=_by_shot(own, gaps, config), partner=None, offset_samples=0)
    frames = round(offset / SAMPLES_PER_FRAME)
    other_speech = shift_frames(partner.speech, frames, own.frames, 0.0)
    speech = np.maximum(own.speech, other_speech)
    other_db = shift_frames(partner.loudness, frames, own.frames, -80.0)
    side = louder_side(own.loudness, other_db, speech, config.speech_threshold)
    theirs = gap_on_timeline(_main_track(partner), partner.frames)
    theirs = shift_frames(theirs, frames, own.frames, float("nan"))
    labels: list[Labels] = []
    other = np.zeros(own.frames, np.uint8)
    for shot, (start, stop) in enumerate(own.shots):
        inside = [i for i, track in enumerate(own.tracks) if track.shot == shot]
        people = [gaps[i][start:stop] for i in inside] + [theirs[start:stop]]
        biggest = max(range(len(inside)), key=lambda n: own.tracks[inside[n]].face_px, default=None)
        pair = None if biggest is None else (biggest, len(inside))
        part = None if side is None else side[start:stop]
        found = label_people(speech[start:stop], people, config, loudness_side=part, pair=pair)
        labels += [_clip_labels(found[n], own.tracks[i], start) for n, i in enumerate(inside)]
        other[start:stop] = found[-1].states
    return Labelled(labels=labels, partner=other, offset_samples=offset)


def _main_track(analysis: Analysis) -> Track:
    """The person a camera films: most seconds in the picture, weighted by size."""
    return max(analysis.tracks, key=lambda track: len(track.values) * track.face_px)


def _by_shot(own: Analysis, gaps: list[NDArray[np.float32]], config: StateConfig) -> list[Labels]:
    """Label a source without a partner, shot by shot."""
    labels: list[Labels] = []
    for shot, (start, stop) in enumerate(own.shots):
        inside = [i for i, track in enumerate(own.tracks) if track.shot == shot]
        found = label_people(own.speech[start:stop], [gaps[i][start:stop] for i in inside], config)
        for n, i in enumerate(inside):
            track = own.tracks[i]
            sync = sync_score(track.column("gap"), own.loudness[track.start : track.stop])
            labels.append(drop_dubbed(_clip_labels(found[n], track, start), sync, config))
    return labels


def _clip_labels(labels: Labels, track: Track, start: int) -> Labels:
    """The part of a shot's labels in which a track exists."""
    part = slice(track.start - start, track.stop - start)
    return Labels(states=labels.states[part], confidence=labels.confidence[part])
