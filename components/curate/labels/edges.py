"""The first and last frame of every stretch of speech, looked for again once it is known who speaks when.

A chain that decodes everybody together finds who speaks, but it pays for every switch, so that it cuts overlaps short,
and a voice detector lets go late. So each edge is placed anew where the evidence of this one person changes: how far
the mouth is open and how much it moves, and the voice where nobody else could be heard. Lips move before the voice
starts and close after it has ended (Chandrasekaran et al. 2009, "The natural statistics of audiovisual speech", PLoS
Computational Biology 5: the mouth leads by 100 to 300 ms), so the mouth's part is moved by that time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from components.curate.config import StateConfig
from components.curate.labels.intervals import runs
from lpm_model.config import VIDEO_FPS

_REST_PERCENTILE = 20
"""A mouth is shut or at rest at least so often (%)."""
_OPEN_GAP = 0.02
"""Gap above rest (in eye distances) of a mouth that is neither surely open nor surely shut."""
_LIMIT = 3.0
_EDGE_BIAS = 1.5
"""Log odds: at an edge the voice detector has to be surer than elsewhere, as it lets go late."""
_VOICE_LAG = 1
"""Frames by which the voice detector lets go late."""
_NEAR = 5
"""Frames around another's speech in which the voice may be the other's."""


def mouth_evidence(gap: NDArray[np.float32], motion: NDArray[np.float32]) -> NDArray[np.float32]:
    """Evidence that a mouth talks, from its motion or its opening, whichever says more; 0 where it is not seen.

    Args:
        gap: mouth gap in eye distances [T], NaN where the face is not seen.
        motion: log odds of talk from the mouth's movement [T].
    """
    if np.isnan(gap).all():
        return np.zeros(len(gap), np.float32)
    rest = float(np.nanpercentile(gap, _REST_PERCENTILE))
    opened = np.clip((gap - rest) / _OPEN_GAP - 1, -_LIMIT, _LIMIT)
    return np.where(np.isnan(gap), 0.0, np.maximum(opened, motion)).astype(np.float32)


def place_edges(
    speaks: Sequence[NDArray[np.bool_]],
    mouths: Sequence[NDArray[np.float32]],
    voice: NDArray[np.float64],
    unseen: NDArray[np.bool_],
    config: StateConfig,
) -> list[NDArray[np.bool_]]:
    """Move the edges of everybody's speech to where the person's own evidence changes.

    Args:
        speaks: for each person where they were found to speak, bool [T].
        mouths: for each person what `mouth_evidence` gives, [T].
        voice: log odds of speech by frame, [T].
        unseen: where somebody out of sight was found to speak, bool [T].
        config: limits.

    Returns:
        The same runs of speech with other edges; runs of one person never meet.
    """
    lead, lag = round(config.lips_lead_s * VIDEO_FPS), round(config.lips_lag_s * VIDEO_FPS)
    near = np.ones(_NEAR)
    heard = [np.convolve(np.pad(one, _NEAR // 2), near, mode="valid") > 0.5 for one in (*speaks, unseen)]
    placed = []
    for person, (mine, mouth) in enumerate(zip(speaks, mouths, strict=True)):
        others = np.logical_or.reduce([one for number, one in enumerate(heard) if number != person])
        # Another's voice says nothing about this person, but silence does.
        sound = np.where(others, np.minimum(voice - _EDGE_BIAS, 0.0), voice - _EDGE_BIAS)
        starts, stops = sound + _moved(mouth, lead), _moved(sound, -_VOICE_LAG) + _moved(mouth, -lag)
        placed.append(_placed(runs(mine), starts, stops, round(config.edge_reach_s * VIDEO_FPS)))
    return placed


def _placed(
    spans: list[tuple[int, int]], starts: NDArray[np.floating], stops: NDArray[np.floating], reach: int
) -> NDArray[np.bool_]:
    """Runs with each edge at the best place within `reach` frames, no further than halfway to the next edge."""
    out = np.zeros(len(starts), bool)
    for number, (start, stop) in enumerate(spans):
        middle = (start + stop) // 2
        before = spans[number - 1][1] if number else -start
        after = spans[number + 1][0] if number + 1 < len(spans) else 2 * len(out) - stop
        first = _change(starts, max(start - reach, (before + start) // 2 + 1), min(start + reach, middle))
        last = _change(-stops, max(stop - reach, middle + 1), min(stop + reach, (stop + after) // 2))
        out[start if first is None else first : stop if last is None else last] = True
    return out


def _change(evidence: NDArray[np.floating], low: int, high: int) -> int | None:
    """The frame low..high at which evidence turns from negative to positive for good, None where there is no room."""
    if low >= high:
        return None
    sums = np.concatenate([[0.0], np.cumsum(evidence[low:high])])
    return low + int(sums.argmin())


def _moved(values: NDArray[np.floating], frames: int) -> NDArray[np.floating]:
    """Values `frames` later (earlier if negative), the edge value where none are known."""
    at = np.clip(np.arange(len(values)) - frames, 0, len(values) - 1)
    return values[at]


def bridge(speaks: NDArray[np.bool_], frames: int) -> NDArray[np.bool_]:
    """Speech without its pauses of up to so many frames."""
    out = speaks.copy()
    for start, stop in runs(~speaks):
        if start > 0 and stop < len(speaks) and stop - start <= frames:
            out[start:stop] = True
    return out
