"""Converts phones to mouth shapes: ARKit curves with coarticulation.

Every phone pulls the mouth towards its shape with a dominance that is flat during the phone and decays to both sides
(Cohen and Massaro's model): a strong phone such as W is prepared early and a weak one such as T takes the shape
of its neighbours. Lip closures (P, B, M) and lip-to-teeth contacts (F, V) are then imposed, because blending must
never leave them half open.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer.phones import Phone
from components.performer.tracks import ARKIT_INDEX, ARKIT_NAMES
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME

CHANNELS: Final = ("jaw", "funnel", "pucker", "wide", "lower", "upper", "roll", "tongue", "shrug")
_BOTH: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "jaw": (("jawOpen", 1.5),),  # exaggerated: what is not visible at 128 px cannot be learned
    "funnel": (("mouthFunnel", 1.0),),
    "pucker": (("mouthPucker", 1.0),),
    "wide": (
        ("mouthStretch_L", 0.55), ("mouthStretch_R", 0.55),
        ("mouthSmile_L", 0.35), ("mouthSmile_R", 0.35),
        ("mouthDimple_L", 0.25), ("mouthDimple_R", 0.25),
    ),
    "lower": (("mouthLowerDown_L", 0.5), ("mouthLowerDown_R", 0.5)),
    "upper": (("mouthUpperUp_L", 0.8), ("mouthUpperUp_R", 0.8)),
    "roll": (("mouthRollLower", 1.0), ("mouthRollUpper", 0.25)),
    "tongue": (("tongueOut", 1.0),),
    "shrug": (("mouthShrugUpper", 0.6), ("mouthShrugLower", 0.5)),
}  # fmt: skip

# Targets in CHANNELS order: jaw, funnel, pucker, wide, lower, upper, roll, tongue, shrug.
_OPEN: Final = {
    "AA": (0.60, 0.05, 0.00, 0.05, 0.30, 0.10, 0, 0, 0), "AE": (0.48, 0.00, 0.00, 0.40, 0.35, 0.20, 0, 0, 0),
    "AH": (0.38, 0.05, 0.00, 0.05, 0.22, 0.08, 0, 0, 0), "AO": (0.50, 0.50, 0.20, 0.00, 0.15, 0.10, 0, 0, 0),
    "AW": (0.52, 0.35, 0.20, 0.00, 0.22, 0.10, 0, 0, 0), "AY": (0.52, 0.00, 0.00, 0.28, 0.30, 0.14, 0, 0, 0),
    "EH": (0.38, 0.00, 0.00, 0.35, 0.30, 0.14, 0, 0, 0), "ER": (0.24, 0.38, 0.22, 0.00, 0.18, 0.08, 0, 0, 0),
    "EY": (0.32, 0.00, 0.00, 0.55, 0.30, 0.16, 0, 0, 0), "IH": (0.26, 0.00, 0.00, 0.32, 0.26, 0.12, 0, 0, 0),
    "IY": (0.16, 0.00, 0.00, 0.75, 0.32, 0.20, 0, 0, 0), "OW": (0.36, 0.50, 0.45, 0.00, 0.10, 0.05, 0, 0, 0),
    "OY": (0.38, 0.45, 0.30, 0.05, 0.12, 0.06, 0, 0, 0), "UH": (0.24, 0.38, 0.35, 0.00, 0.12, 0.05, 0, 0, 0),
    "UW": (0.10, 0.32, 0.85, 0.00, 0.00, 0.00, 0, 0, 0),
}  # fmt: skip
_CONSONANT: Final = {
    "B": (0.02, 0, 0, 0, 0, 0, 0.2, 0, 0), "P": (0.02, 0, 0, 0, 0, 0, 0.2, 0, 0), "M": (0.02, 0, 0, 0, 0, 0, 0.2, 0, 0),
    "F": (0.08, 0, 0, 0.15, 0, 0.30, 0.55, 0, 0), "V": (0.10, 0, 0, 0.10, 0, 0.26, 0.50, 0, 0),
    "W": (0.05, 0.25, 0.95, 0, 0, 0, 0, 0, 0), "R": (0.16, 0.45, 0.28, 0, 0.12, 0.05, 0, 0, 0),
    "CH": (0.10, 0.60, 0.30, 0, 0.20, 0.20, 0, 0, 0.1), "JH": (0.10, 0.60, 0.30, 0, 0.20, 0.20, 0, 0, 0.1),
    "SH": (0.10, 0.65, 0.30, 0, 0.20, 0.22, 0, 0, 0.1), "ZH": (0.10, 0.60, 0.30, 0, 0.20, 0.20, 0, 0, 0.1),
    "S": (0.07, 0, 0, 0.45, 0.32, 0.16, 0, 0, 0), "Z": (0.07, 0, 0, 0.45, 0.32, 0.16, 0, 0, 0),
    "T": (0.13, 0, 0, 0.22, 0.22, 0.10, 0, 0.1, 0), "D": (0.14, 0, 0, 0.22, 0.22, 0.10, 0, 0.1, 0),
    "N": (0.15, 0, 0, 0.20, 0.22, 0.10, 0, 0.1, 0), "L": (0.22, 0, 0, 0.18, 0.22, 0.10, 0, 0.25, 0),
    "TH": (0.18, 0, 0, 0.15, 0.26, 0.12, 0, 0.75, 0), "DH": (0.18, 0, 0, 0.12, 0.24, 0.10, 0, 0.6, 0),
    "K": (0.20, 0, 0, 0.12, 0.18, 0.08, 0, 0, 0), "G": (0.20, 0, 0, 0.12, 0.18, 0.08, 0, 0, 0),
    "NG": (0.20, 0, 0, 0.12, 0.18, 0.08, 0, 0, 0), "HH": (0.26, 0, 0, 0.05, 0.15, 0.05, 0, 0, 0),
    "Y": (0.14, 0, 0, 0.60, 0.25, 0.15, 0, 0, 0),
}  # fmt: skip
TARGETS: Final[dict[str, tuple[float, ...]]] = {**_OPEN, **_CONSONANT}
"""Mouth shape of each ARPAbet phone, in CHANNELS order."""

_LIPS_SHUT: Final = frozenset("BPM")
_LIP_TEETH: Final = frozenset("FV")
_STRONG: Final = {"W": 2.0, "UW": 1.6, "OW": 1.3, "SH": 1.8, "CH": 1.8, "JH": 1.8, "ZH": 1.8, "F": 1.5, "V": 1.5}
_WEAK: Final = dict.fromkeys(("T", "D", "N", "K", "G", "NG", "HH", "L"), 0.35)
_ROUNDED_FREE: Final = (1, 2, 3)  # funnel, pucker, wide: consonants without a lip gesture leave these to vowels
_SPREAD_BEFORE_S: Final = 0.060
_SPREAD_AFTER_S: Final = 0.050
_REST: Final = 0.06
_RATE: Final = float(AUDIO_RATE)
_FULL_LEVEL: Final = 0.1  # RMS of a vowel at ordinary loudness; the voices speak at that level
_CLOSURE_HALF_S: Final = 0.024  # a closure lasts at least 48 ms, which always covers one frame
_CLOSURE_RAMP_S: Final = 0.055


def loudness(pcm: NDArray[np.int16], frames: int) -> NDArray[np.float32]:
    """Return the RMS (full scale 1) in the 60 ms around each frame's time, float32 [frames]."""
    squared = np.concatenate([[0.0], np.cumsum((pcm.astype(np.float64) / 32768.0) ** 2)])
    centre = np.arange(frames) * SAMPLES_PER_FRAME
    first = np.clip(centre - 720, 0, len(pcm))
    last = np.clip(centre + 720, 0, len(pcm))
    return np.asarray(np.sqrt(np.maximum(squared[last] - squared[first], 0.0) / 1440.0), np.float32)


def mouth_curves(phones: Sequence[Phone], pcm: NDArray[np.int16], frames: int) -> NDArray[np.float32]:
    """Compute the blendshape curves of a speaking mouth.

    Args:
        phones: phones, timed on the samples of `pcm`.
        pcm: int16 [samples] at 24 kHz, the speaker alone; loudness scales the jaw opening.
        frames: T; frame f shows the time of sample 1000 f.

    Returns:
        float32 [T, 52] in ARKIT_NAMES order; channels outside the mouth are zero.
    """
    curves = np.zeros((frames, len(ARKIT_NAMES)), np.float32)
    if not phones or not frames:
        return curves
    instant = np.arange(frames, dtype=np.float64) * float(SAMPLES_PER_FRAME / _RATE)
    shapes = _blend(phones, instant)
    shapes[:, 0] *= _jaw_gain(pcm, frames)
    shut = _lip_contact(phones, instant, _LIPS_SHUT)
    bite = _lip_contact(phones, instant, _LIP_TEETH) * (1.0 - shut)
    shapes *= (1.0 - shut)[:, None]
    shapes[:, 0] = np.minimum(shapes[:, 0], 1.0 - 0.88 * bite)
    shapes[:, 4] *= 1.0 - bite
    for index, channel in enumerate(CHANNELS):
        for name, weight in _BOTH[channel]:
            curves[:, ARKIT_INDEX[name]] += (weight * shapes[:, index]).astype(np.float32)
    _close_lips(curves, shut)
    return np.clip(curves, 0.0, 1.0)


def _blend(phones: Sequence[Phone], instant: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the dominance-weighted mean of the phones' shapes, [T, channels]."""
    targets = np.asarray([TARGETS[phone.symbol] for phone in phones], np.float64)
    start = np.asarray([phone.start_sample for phone in phones])[:, None] / _RATE
    end = np.asarray([phone.end_sample for phone in phones])[:, None] / _RATE
    inset = 0.25 * (end - start)
    before = np.maximum(start + inset - instant, 0.0) / _SPREAD_BEFORE_S
    after = np.maximum(instant - (end - inset), 0.0) / _SPREAD_AFTER_S
    pull = np.exp(-((before + after) ** 1.5))
    strength = np.asarray([_STRONG.get(p.symbol, _WEAK.get(p.symbol, 1.0)) for p in phones])
    per_channel = np.repeat(strength[:, None], len(CHANNELS), axis=1)
    for index, phone in enumerate(phones):
        if phone.symbol in _CONSONANT and phone.symbol not in _STRONG:
            per_channel[index, _ROUNDED_FREE] *= 0.4
    weight = pull.T @ per_channel
    return np.asarray((pull.T @ (per_channel * targets)) / (weight + _REST), np.float64)


def _jaw_gain(pcm: NDArray[np.int16], frames: int) -> NDArray[np.float64]:
    """Return the jaw's gain for the current loudness, [T], about 0.55 (soft) to 1.2 (loud)."""
    level = loudness(pcm, frames).astype(np.float64)
    smooth = np.convolve(np.pad(level, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    return np.asarray(0.5 + 0.65 * np.clip(smooth / _FULL_LEVEL, 0.0, 1.15))


def _lip_contact(phones: Sequence[Phone], instant: NDArray[np.float64], symbols: frozenset[str]) -> NDArray[np.float64]:
    """Return how complete a lip contact is, 0 to 1, [T]."""
    contact = np.zeros(len(instant))
    for phone in phones:
        if phone.symbol not in symbols:
            continue
        middle = (phone.start_sample + phone.end_sample) / (2 * _RATE)
        half = max(_CLOSURE_HALF_S, 0.3 * (phone.end_sample - phone.start_sample) / _RATE)
        distance = np.clip((np.abs(instant - middle) - half) / _CLOSURE_RAMP_S, 0.0, 1.0)
        contact = np.maximum(contact, 0.5 + 0.5 * np.cos(np.pi * distance))
    return contact


def _close_lips(curves: NDArray[np.float32], shut: NDArray[np.float64]) -> None:
    """Press the lips together where `shut` is 1."""
    pressed = shut.astype(np.float32)
    for name, weight in (
        ("mouthPress_L", 0.35),
        ("mouthPress_R", 0.35),
        ("mouthRollLower", 0.3),
        ("mouthRollUpper", 0.25),
    ):
        curves[:, ARKIT_INDEX[name]] += weight * pressed
