"""Motion terms from head pose and eyelids: what a head does in a span, in the order in which it happens."""

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import FEATURES
from lpm_model.config import VIDEO_FPS

_SWING_RAD = 0.03
"""A nod or a shake goes at least so far from the slow course of the head."""
_TURN_RAD = 0.25
_TILT_RAD = 0.15
_LIVELY_DEG, _CALM_DEG = 3.0, 0.8
_HELD = 12
"""Frames (half a second) that a turned head is held."""
_BLINKS_PER_MIN = 30
_MOST = 4


def motion_terms(features: NDArray[np.float32], usual: NDArray[np.float32], free: NDArray[np.bool_]) -> list[str]:
    """Motion terms of the vocabulary.

    Args:
        features: face features [T, F] by FEATURES.
        usual: the features of the person's face as long as it does nothing [T, F].
        free: the frames that may be described, bool [T]; the others are looked away from.
    """
    if not free.any():
        return []
    yaw, pitch, roll, eyes = (_track(features, usual, free, name) for name in ("yaw", "pitch", "roll", "eyes"))
    when: dict[str, int] = {}
    nods = _swings(pitch, free)
    if nods:
        when["nods" if len(nods) > 1 else "nods once"] = nods[0]
    shakes = _swings(np.abs(yaw - _course(yaw)), free, detrended=True)
    if len(shakes) >= 3:
        when["shakes head"] = shakes[0]
    for name, held in (
        ("turns head left", yaw < -_TURN_RAD),
        ("turns head right", yaw > _TURN_RAD),
        ("looks down", pitch > _TURN_RAD),
        ("looks up", pitch < -_TURN_RAD),
        ("tilts head left", roll < -_TILT_RAD),
        ("tilts head right", roll > _TILT_RAD),
    ):
        first = _first_run(held & free, _HELD)
        if first is not None:
            when[name] = first
    blinks = _rises(free & (eyes < -0.45 * usual[:, FEATURES.index("eyes")]))
    if len(blinks) >= 2 and len(blinks) * 60 * VIDEO_FPS > _BLINKS_PER_MIN * int(free.sum()):
        when["blinks often"] = blinks[0]
    terms = sorted(when, key=lambda name: (when[name], name))[:_MOST]
    return terms or [_energy(yaw[free], pitch[free])]


def _track(
    features: NDArray[np.float32], usual: NDArray[np.float32], free: NDArray[np.bool_], name: str
) -> NDArray[np.float64]:
    """One feature relative to the person's usual value; 0 where it is unknown or not to be described."""
    column = FEATURES.index(name)
    return np.where(free, np.nan_to_num(features[:, column].astype(np.float64) - usual[:, column]), 0.0)


def _course(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a second around each frame."""
    return np.convolve(np.pad(track, VIDEO_FPS // 2, mode="edge"), np.ones(VIDEO_FPS + 1) / (VIDEO_FPS + 1), "valid")


def _swings(track: NDArray[np.float64], free: NDArray[np.bool_], *, detrended: bool = False) -> list[int]:
    """First frames of the swings above the head's slow course that come back."""
    return _rises(free & ((track if detrended else track - _course(track)) > _SWING_RAD))


def _rises(flags: NDArray[np.bool_]) -> list[int]:
    return [int(at) for at in np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8)])) == 1)]


def _first_run(flags: NDArray[np.bool_], length: int) -> int | None:
    """Start of the first run of so many frames."""
    if len(flags) < length:
        return None
    runs = np.convolve(flags, np.ones(length), mode="valid")
    full = np.flatnonzero(runs > length - 0.5)
    return int(full[0]) if len(full) else None


def _energy(yaw: NDArray[np.float64], pitch: NDArray[np.float64]) -> str:
    """How much the head moves where it does nothing that has a name."""
    spread_deg = float(np.degrees(np.hypot(np.std(yaw), np.std(pitch))))
    if spread_deg > _LIVELY_DEG:
        return "moves head lively"
    return "holds head still" if spread_deg < _CALM_DEG else "moves head slightly"
