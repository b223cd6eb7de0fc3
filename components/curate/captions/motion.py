"""Motion terms from head pose and eyelids, in the order in which they happen in a span."""

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import FEATURES
from lpm_model.config import VIDEO_FPS

_SWING_RAD = 0.03
"""Smallest amplitude of a nod or shake relative to the low-pass head pose."""
_TURN_RAD = 0.25
_TILT_RAD = 0.15
_LIVELY_DEG, _CALM_DEG = 3.0, 0.8
_MIN_HELD_FRAMES = 12
"""Frames (half a second) that a turned head is held."""
_BLINKS_PER_MIN = 30
_MAX_TERMS = 4


def motion_terms(features: NDArray[np.float32], neutral: NDArray[np.float32], free: NDArray[np.bool_]) -> list[str]:
    """Return the motion terms of the vocabulary.

    Args:
        features: face features [T, F], columns as in FEATURES.
        neutral: features of the person's neutral face [T, F].
        free: describable frames, bool [T]; all others are ignored.
    """
    if not free.any():
        return []
    yaw, pitch, roll, eyes = (_track(features, neutral, free, name) for name in ("yaw", "pitch", "roll", "eyes"))
    when: dict[str, int] = {}
    nods = _swings(pitch, free)
    if nods:
        when["nods" if len(nods) > 1 else "nods once"] = nods[0]
    shakes = _swings(np.abs(yaw - _low_pass(yaw)), free, detrended=True)
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
        first = _first_run(held & free, _MIN_HELD_FRAMES)
        if first is not None:
            when[name] = first
    blinks = _rising_edges(free & (eyes < -0.45 * neutral[:, FEATURES.index("eyes")]))
    if len(blinks) >= 2 and len(blinks) * 60 * VIDEO_FPS > _BLINKS_PER_MIN * int(free.sum()):
        when["blinks often"] = blinks[0]
    terms = sorted(when, key=lambda name: (when[name], name))[:_MAX_TERMS]
    return terms or [_energy(yaw[free], pitch[free])]


def _track(
    features: NDArray[np.float32], neutral: NDArray[np.float32], free: NDArray[np.bool_], name: str
) -> NDArray[np.float64]:
    """Return one feature relative to the person's neutral value, 0 where unknown or not describable, float64 [T]."""
    column = FEATURES.index(name)
    return np.where(free, np.nan_to_num(features[:, column].astype(np.float64) - neutral[:, column]), 0.0)


def _low_pass(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over one second around each frame."""
    return np.convolve(np.pad(track, VIDEO_FPS // 2, mode="edge"), np.ones(VIDEO_FPS + 1) / (VIDEO_FPS + 1), "valid")


def _swings(track: NDArray[np.float64], free: NDArray[np.bool_], *, detrended: bool = False) -> list[int]:
    """Return the first frames of the swings above the low-pass head pose."""
    return _rising_edges(free & ((track if detrended else track - _low_pass(track)) > _SWING_RAD))


def _rising_edges(flags: NDArray[np.bool_]) -> list[int]:
    return [int(at) for at in np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8)])) == 1)]


def _first_run(flags: NDArray[np.bool_], length: int) -> int | None:
    """Return the start of the first run of at least `length` frames."""
    if len(flags) < length:
        return None
    runs = np.convolve(flags, np.ones(length), mode="valid")
    full = np.flatnonzero(runs > length - 0.5)
    return int(full[0]) if len(full) else None


def _energy(yaw: NDArray[np.float64], pitch: NDArray[np.float64]) -> str:
    """Return how much the head moves if no other motion was found."""
    spread_deg = float(np.degrees(np.hypot(np.std(yaw), np.std(pitch))))
    if spread_deg > _LIVELY_DEG:
        return "moves head lively"
    return "holds head still" if spread_deg < _CALM_DEG else "moves head slightly"
