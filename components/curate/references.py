"""Reference pictures of the same person from outside a clip's span: a global one, expressions and views."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.faces import Track
from components.curate.manifest import DISCARD, SPEAK

_GUARD_FRAMES = 12
"""Half a second around the clip is too much like it."""
_CANDIDATES = 3
_SMILE = 0.05
_TURN_RAD = 0.30


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A kind of reference and the frames it may come from; the sharpest of them is taken."""

    kind: str
    """global, expression:smile, view:left or view:right."""
    frames: list[int]
    """Candidate frames of the source, best first."""


def choose_references(
    track: Track, states: NDArray[np.uint8], start: int, frames: int, config: CurationConfig
) -> list[Choice]:
    """References for one clip, all from the same track as the clip, hence of the same person.

    Args:
        track: the person.
        states: the person's states [T].
        start: the clip's first frame in the source.
        frames: the clip's length.
        config: how many references.

    Returns:
        The global reference first; empty where the person is never seen well outside the clip.
    """
    at = np.arange(track.start, track.stop)
    outside = (at < start - _GUARD_FRAMES) | (at >= start + frames + _GUARD_FRAMES)
    free = outside & track.seen & (states != DISCARD)
    yaw, eyes, smile = track.column("yaw"), track.column("eyes"), track.column("smile")
    awake = np.nan_to_num(eyes, nan=0.0) > 0.75 * float(np.nanmedian(eyes))
    frontal = np.nan_to_num(np.hypot(yaw, track.column("pitch") - np.nanmedian(track.column("pitch"))), nan=9.0)
    excess = np.nan_to_num(smile, nan=0.0) - float(np.nanmedian(smile))
    calm = frontal + 2.0 * np.nan_to_num(track.column("gap"), nan=1.0) + np.abs(excess) + 0.2 * (states == SPEAK)
    usual = float(np.nanmedian(yaw))
    turned = np.nan_to_num(yaw, nan=usual)
    wanted = [
        ("global", free & awake & (frontal < 0.6), calm),
        ("expression:smile", free & awake & (excess > _SMILE), -excess),
        ("view:left", free & awake & (turned < -_TURN_RAD), turned),
        ("view:right", free & awake & (turned > _TURN_RAD), -turned),
    ]
    choices = [Choice(kind=kind, frames=_best(at, ok, cost)) for kind, ok, cost in wanted if ok.any()]
    if not choices or choices[0].kind != "global":
        return []
    return choices[: config.max_references]


def _best(at: NDArray[np.int64], allowed: NDArray[np.bool_], cost: NDArray[np.float64]) -> list[int]:
    """Frames of lowest cost that are at least a quarter of a second apart."""
    order = np.flatnonzero(allowed)
    order = order[np.argsort(cost[order], kind="stable")]
    chosen: list[int] = []
    for index in order:
        frame = int(at[index])
        if all(abs(frame - other) >= 6 for other in chosen):
            chosen.append(frame)
        if len(chosen) == _CANDIDATES:
            break
    return chosen
