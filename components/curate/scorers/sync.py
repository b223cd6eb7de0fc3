"""Whether sound and lips of one clip belong together, and how far apart they are.

Four seconds are too few to learn how a mouth follows a voice (as curate/offset.py does for a whole source), so the
relation comes with the weights of lips.py; those know rendered faces.
"""

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.scorers import lips
from components.curate.scorers.base import Clip, Scorer, Scores
from components.curate.video.faces import Track, once_a_track
from lpm_model.config import SAMPLES_PER_FRAME, STATES

_REACH = 18
"""Frames, in both directions, over which sound and lips are shifted."""
_TOGETHER = 3
_IN_PLACE = slice(_REACH - _TOGETHER, _REACH + _TOGETHER + 1)
_MIN_SPEAKING = 24
_TRUSTED = 0.6
"""Correlation that the best shift needs for its place to mean anything."""


class Sync(Scorer):
    """Correlation of the lips that are seen with those that the sound suggests, and the shift that suits both best.

    av_offset_frames > 0: the sound comes late.
    """

    name, version = "sync", "4"
    columns = ("sync", "av_sync", "av_offset_frames")

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        return lips.digest()

    def score(self, clip: Clip) -> Scores:
        speaks = clip.states == STATES["speak"]
        values = _whole_sync(clip.track, clip.own.loudness)[clip.start - clip.track.start :][: clip.frames][speaks]
        scores: Scores = {"sync": float(values.mean()) if len(values) else None}
        if speaks.sum() < _MIN_SPEAKING:
            return {**scores, "av_sync": None, "av_offset_frames": None}
        span = slice(clip.start * SAMPLES_PER_FRAME, (clip.start + clip.frames) * SAMPLES_PER_FRAME)
        gap = clip.track.column("gap")[clip.start - clip.track.start :][: clip.frames]
        by_shift = agreement(lips.guess_opening(clip.own.track[span]), np.nan_to_num(gap, nan=float(np.nanmean(gap))))
        return {**scores, "av_sync": float(by_shift[_IN_PLACE].max()), "av_offset_frames": place_of(by_shift)}


def place_of(by_shift: NDArray[np.float64]) -> float | None:
    """Frames by which the sound is late where that can be told, from agreements [37] by shift.

    A peak at the sound's own place is believed before a higher one elsewhere: the same syllables come again.
    """
    near = by_shift[_IN_PLACE]
    peak = int(near.argmax())
    if 0 < peak < len(near) - 1 and near[peak] >= _TRUSTED:
        return float(peak - _TOGETHER)
    best = int(by_shift.argmax())
    return float(best - _REACH) if by_shift[best] >= _TRUSTED else None


@once_a_track
def _whole_sync(track: Track, loudness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlation of mouth and loudness over a whole track, [frames]."""
    from components.curate.labels.states import sync_score

    return sync_score(track.column("gap"), loudness[track.start : track.stop])


def agreement(heard: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean correlation of two courses [frames] and of their fast parts, by shift as `correlations` gives it.

    Whole courses agree by chance where both begin or end to speak; syllables alone are few in a short clip.
    """
    from components.curate.labels.offset import fast_part

    fast = [np.asarray(fast_part(values[:, None])[:, 0], np.float32) for values in (heard, seen)]
    return (correlations(heard, seen) + correlations(fast[0], fast[1])) / 2


def correlations(heard: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson correlation with the sound 18 frames early to 18 frames late, float64 [37]; both are [frames]."""
    found = []
    for shift in range(-_REACH, _REACH + 1):
        a, b = (heard[shift:], seen[: len(seen) - shift]) if shift >= 0 else (heard[:shift], seen[-shift:])
        spread = float(a.std() * b.std())
        found.append(float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 1e-9 else 0.0)
    return np.array(found)
