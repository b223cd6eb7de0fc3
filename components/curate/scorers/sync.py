"""Score lip sync: whether the audio and lips of one clip match, and how far apart they are.

Four seconds are too few to learn how a mouth follows a voice (as labels/offset.py does for a whole source), so the
relation comes from the weights in lips.py, which were fitted to rendered faces.
"""

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.scorers import lips
from components.curate.scorers.base import ClipView, Scorer, Scores
from components.curate.video.faces import Track, once_per_track
from lpm_model.config import SAMPLES_PER_FRAME, STATES

_REACH = 18
"""Frames, in both directions, by which audio and lips are shifted."""
_TOLERANCE = 3
_IN_SYNC = slice(_REACH - _TOLERANCE, _REACH + _TOLERANCE + 1)
_MIN_SPEAKING = 24
_MIN_CORRELATION = 0.6
"""Smallest correlation of the best shift for which the offset is reported."""


class Sync(Scorer):
    """Correlation of the observed lips with those estimated from audio, and the shift with the best match.

    av_offset_frames > 0: the audio is late.
    """

    name, version = "sync", "4"
    columns = ("sync", "av_sync", "av_offset_frames")

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        return lips.digest()

    def score(self, clip: ClipView) -> Scores:
        speaks = clip.states == STATES["speak"]
        values = _whole_sync(clip.track, clip.analysis.loudness)[clip.start - clip.track.start :][: clip.frames][speaks]
        scores: Scores = {"sync": float(values.mean()) if len(values) else None}
        if speaks.sum() < _MIN_SPEAKING:
            return {**scores, "av_sync": None, "av_offset_frames": None}
        span = slice(clip.start * SAMPLES_PER_FRAME, (clip.start + clip.frames) * SAMPLES_PER_FRAME)
        gap = clip.track.column("gap")[clip.start - clip.track.start :][: clip.frames]
        observed = np.nan_to_num(gap, nan=float(np.nanmean(gap)))
        by_shift = agreement(lips.estimate_opening(clip.analysis.track[span]), observed)
        return {**scores, "av_sync": float(by_shift[_IN_SYNC].max()), "av_offset_frames": offset_of(by_shift)}


def offset_of(by_shift: NDArray[np.float64]) -> float | None:
    """Return the frames by which the audio is late, from agreements by shift [37]; None if it is uncertain.

    A peak within the tolerance is preferred to a higher one elsewhere, because syllables repeat.
    """
    near = by_shift[_IN_SYNC]
    peak = int(near.argmax())
    if 0 < peak < len(near) - 1 and near[peak] >= _MIN_CORRELATION:
        return float(peak - _TOLERANCE)
    best = int(by_shift.argmax())
    return float(best - _REACH) if by_shift[best] >= _MIN_CORRELATION else None


@once_per_track
def _whole_sync(track: Track, loudness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the correlation of mouth and loudness over a whole track, float32 [frames]."""
    from components.curate.labels.states import sync_score

    return sync_score(track.column("gap"), loudness[track.start : track.stop])


def agreement(audio: NDArray[np.float32], lips_gap: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean correlation of two curves [frames] and of their high-pass parts, by shift: float64 [37].

    Whole curves correlate by chance where speech starts or ends; syllables alone are few in a short clip.
    """
    from components.curate.labels.offset import high_pass

    fast = [np.asarray(high_pass(values[:, None])[:, 0], np.float32) for values in (audio, lips_gap)]
    return (correlations(audio, lips_gap) + correlations(fast[0], fast[1])) / 2


def correlations(audio: NDArray[np.float32], lips_gap: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return Pearson correlations for audio 18 frames early to 18 frames late, float64 [37], of curves [frames]."""
    found = []
    for shift in range(-_REACH, _REACH + 1):
        a, b = (audio[shift:], lips_gap[: len(lips_gap) - shift]) if shift >= 0 else (audio[:shift], lips_gap[-shift:])
        spread = float(a.std() * b.std())
        found.append(float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 1e-9 else 0.0)
    return np.array(found)
