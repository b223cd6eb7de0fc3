"""Who talks with whom: in one shot, and across the two cameras of one conversation with clocks of their own."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.analyse import Analysis
from components.curate.config import StateConfig
from components.curate.faces import Track
from components.curate.manifest import LISTEN, SPEAK
from components.curate.offset import UNKNOWN, Offset, find_offset, shift_sound, sound_bands
from components.curate.speech import loudness_db, speech_probability
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
    beside: list[int | None]
    """For each track the track in the same shot that the person talks with, None without one."""
    offscreen: NDArray[np.bool_]
    """Frames with speech though nobody who is seen (or films) speaks: a narrator or an off-scene voice."""
    av_offset: Offset = UNKNOWN
    """How late the source's sound was found to be, where that was asked (`source_offset`)."""


def camera_offset(own: NDArray[np.int16], other: NDArray[np.int16], max_s: float) -> int | None:
    """Offset in samples between two recordings of one room, None where they do not match."""
    offset, strength = camera_match(own, other, max_s)
    return offset if strength > _MIN_PEAK else None


def camera_match(own: NDArray[np.int16], other: NDArray[np.int16], max_s: float) -> tuple[int, float]:
    """The best offset in samples between two recordings and how far its match stands out (robust deviations).

    Each microphone hears both people, so the phase-weighted cross-correlation has a sharp peak at the offset.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    if not np.any(own) or not np.any(other):
        return 0, 0.0
    size = next_fast_len(len(own) + len(other))
    cross = np.conj(rfft(own.astype(np.float32), size)) * rfft(other.astype(np.float32), size)
    cross /= np.maximum(np.abs(cross), 1e-6 * float(np.abs(cross).max())) ** 0.8
    match = irfft(cross, size)
    reach = min(int(max_s * AUDIO_RATE), size // 2 - 1)
    near = np.concatenate([match[-reach:], match[: reach + 1]])
    peak = int(near.argmax())
    spread = float(np.median(np.abs(near))) / 0.6745 + 1e-12
    return peak - reach, float(near[peak]) / spread


def match_cameras(tracks: Sequence[NDArray[np.int16]], max_s: float) -> list[tuple[int, int]]:
    """Which recordings are the two cameras of one conversation, by their sound alone.

    The strongest matches are taken first and every recording is used once; for tens of recordings, as each is compared
    with each.
    """
    found = []
    for a, b in itertools.combinations(range(len(tracks)), 2):
        strength = camera_match(tracks[a], tracks[b], max_s)[1]
        if strength > _MIN_PEAK:
            found.append((strength, a, b))
    pairs: list[tuple[int, int]] = []
    for _, a, b in sorted(found, key=lambda item: (-item[0], item[1], item[2])):
        if not any(a in pair or b in pair for pair in pairs):
            pairs.append((a, b))
    return sorted(pairs)


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
        return _labelled(own, _by_shot(own, gaps, config), None, 0, config)
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
    return _labelled(own, labels, other, offset, config)


def _labelled(
    own: Analysis, labels: list[Labels], partner: NDArray[np.uint8] | None, offset_samples: int, config: StateConfig
) -> Labelled:
    """The labels with what follows from them."""
    spoken = np.zeros(own.frames, bool) if partner is None else partner == SPEAK
    for track, one in zip(own.tracks, labels, strict=True):
        spoken[track.start : track.stop] |= one.states == SPEAK
    return Labelled(
        labels=labels,
        partner=partner,
        offset_samples=offset_samples,
        beside=[_talks_with(index, own.tracks, labels) for index in range(len(labels))],
        offscreen=(own.speech > config.speech_threshold) & ~spoken,
    )


def source_offset(own: Analysis) -> Offset:
    """How late a source's sound is, from the mouths of all its people."""
    return find_offset([(track.start, track.column("gap")) for track in own.tracks], sound_bands(own.track))


def put_right(own: Analysis, frames: int) -> Analysis:
    """A source whose sound is `frames` late with the sound moved to where it belongs."""
    track = shift_sound(own.track, frames)
    return dataclasses.replace(own, track=track, speech=speech_probability(track), loudness=loudness_db(track))


def _talks_with(index: int, tracks: list[Track], labels: list[Labels]) -> int | None:
    """The person in the same shot who listens most while this one speaks and speaks most while this one listens."""
    best, most = None, 0
    for other, track in enumerate(tracks):
        if other == index or track.shot != tracks[index].shot:
            continue
        start, stop = max(track.start, tracks[index].start), min(track.stop, tracks[index].stop)
        own = labels[index].states[start - tracks[index].start : stop - tracks[index].start]
        theirs = labels[other].states[start - track.start : stop - track.start]
        heard = int(((own == SPEAK) & (theirs == LISTEN)).sum() + ((own == LISTEN) & (theirs == SPEAK)).sum())
        if heard > most:
            best, most = other, heard
    return best


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
