"""Refine the first and last frame of every run of speech once it is known who speaks when.

Joint decoding of all people finds who speaks, but it penalises every switch, which cuts overlaps short, and a voice
activity detector releases late. Each edge is therefore moved to where the evidence of this one person changes: how far
the mouth is open, how much it moves, and the voice where nobody else speaks. Lips move before the voice starts and
close after it has ended (Chandrasekaran et al. 2009, "The natural statistics of audiovisual speech", PLoS
Computational Biology 5: the mouth leads by 100 to 300 ms), so the mouth's evidence is shifted by that time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from components.curate.config import StateConfig
from components.curate.labels.intervals import runs
from lpm_model.config import VIDEO_FPS

_REST_PERCENTILE = 20
"""Percentile of the mouth gap that counts as a closed or resting mouth."""
_OPEN_GAP = 0.02
"""Gap above rest (in eye distances) at which a mouth is neither clearly open nor clearly closed."""
_LIMIT = 3.0
_EDGE_BIAS = 1.5
"""Log odds: at an edge the voice detector must be more certain than elsewhere, because it releases late."""
_VOICE_LAG = 1
"""Frames by which the voice detector releases late."""
_NEIGHBOURHOOD = 5
"""Frames around another person's speech in which the voice may be theirs."""


def mouth_evidence(gap: NDArray[np.float32], motion: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-odds evidence that a mouth talks: the larger of motion and opening, 0 where it is not detected.

    Args:
        gap: mouth gap in eye distances [T], NaN where the face is not detected.
        motion: log odds of talking from the mouth's movement [T].
    """
    if np.isnan(gap).all():
        return np.zeros(len(gap), np.float32)
    rest = float(np.nanpercentile(gap, _REST_PERCENTILE))
    opened = np.clip((gap - rest) / _OPEN_GAP - 1, -_LIMIT, _LIMIT)
    return np.where(np.isnan(gap), 0.0, np.maximum(opened, motion)).astype(np.float32)


def refine_edges(
    speaks: Sequence[NDArray[np.bool_]],
    mouths: Sequence[NDArray[np.float32]],
    voice: NDArray[np.float64],
    offscreen: NDArray[np.bool_],
    config: StateConfig,
) -> list[NDArray[np.bool_]]:
    """Move the edges of everybody's speech to where that person's own evidence changes.

    Args:
        speaks: decoded speech of each person, bool [T].
        mouths: `mouth_evidence` of each person, [T].
        voice: log odds of speech per frame, [T].
        offscreen: decoded speech of somebody off screen, bool [T].
        config: limits.

    Returns:
        The same runs of speech with refined edges, one bool [T] per person; runs of one person never touch.
    """
    lead, lag = round(config.lips_lead_s * VIDEO_FPS), round(config.lips_lag_s * VIDEO_FPS)
    kernel, margin = np.ones(_NEIGHBOURHOOD), _NEIGHBOURHOOD // 2
    voiced = [np.convolve(np.pad(one, margin), kernel, mode="valid") > 0.5 for one in (*speaks, offscreen)]
    refined = []
    for person, (mine, mouth) in enumerate(zip(speaks, mouths, strict=True)):
        others = np.logical_or.reduce([one for number, one in enumerate(voiced) if number != person])
        # Another person's voice is no evidence about this one, but silence is.
        audio = np.where(others, np.minimum(voice - _EDGE_BIAS, 0.0), voice - _EDGE_BIAS)
        starts, stops = audio + _delayed(mouth, lead), _delayed(audio, -_VOICE_LAG) + _delayed(mouth, -lag)
        refined.append(_move_edges(runs(mine), starts, stops, round(config.edge_reach_s * VIDEO_FPS)))
    return refined


def _move_edges(
    spans: list[tuple[int, int]], starts: NDArray[np.floating], stops: NDArray[np.floating], reach: int
) -> NDArray[np.bool_]:
    """Move each edge to the best frame within `reach`, at most halfway to the next edge; bool [T]."""
    out = np.zeros(len(starts), bool)
    for number, (start, stop) in enumerate(spans):
        middle = (start + stop) // 2
        before = spans[number - 1][1] if number else -start
        after = spans[number + 1][0] if number + 1 < len(spans) else 2 * len(out) - stop
        first = _change_point(starts, max(start - reach, (before + start) // 2 + 1), min(start + reach, middle))
        last = _change_point(-stops, max(stop - reach, middle + 1), min(stop + reach, (stop + after) // 2))
        out[start if first is None else first : stop if last is None else last] = True
    return out


def _change_point(evidence: NDArray[np.floating], low: int, high: int) -> int | None:
    """Return the frame in low..high from which evidence stays positive, or None for an empty range."""
    if low >= high:
        return None
    sums = np.concatenate([[0.0], np.cumsum(evidence[low:high])])
    return low + int(sums.argmin())


def _delayed(values: NDArray[np.floating], frames: int) -> NDArray[np.floating]:
    """Delay values by `frames` (advance if negative), repeating the value at the border."""
    at = np.clip(np.arange(len(values)) - frames, 0, len(values) - 1)
    return values[at]


def bridge_pauses(speaks: NDArray[np.bool_], frames: int) -> NDArray[np.bool_]:
    """Fill pauses of up to `frames` frames between two runs of speech."""
    out = speaks.copy()
    for start, stop in runs(~speaks):
        if start > 0 and stop < len(speaks) and stop - start <= frames:
            out[start:stop] = True
    return out
