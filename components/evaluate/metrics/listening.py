"""Listening: do nods, smiles and movement follow what the other says, as the truth's reactions do?"""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import SPEAK, Array, Truth
from components.evaluate.metrics.anchored import MIN_FRAMES, Anchored, anchored, mean_score, pearson, smooth
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS

NOD_BAND_FRAMES = (1.0, 8.0)
"""Head pitch is smoothed by the first against noise, and what the second keeps is slow posture, not a nod."""
ENERGY_FRAMES = 5.0
"""Smoothing of the nod energy: a nod counts when it comes within about a quarter of a second of the truth's."""
REACTION_S = (0.2, 0.8)
"""A reaction comes this long after the other's pause begins."""
PAUSE_S = 0.2
"""Shortest silence after speech that counts as a pause."""
SPEECH_LEVEL = 300.0
"""RMS (of 32768) over which a frame of a clean voice counts as speech."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reaction:
    """What was read from one video."""

    pitch: Array
    """float [T]: head pitch."""
    smile: Array
    """float [T]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListeningScores:
    """Listening of all cases."""

    nod: Anchored
    """Correlation of the nod energy with the truth's on the frames where the character does not speak."""
    smile: Anchored
    """Correlation of the smile with the truth's on these frames."""
    lift: Anchored
    """log2 of the nod energy 0.2-0.8 s after the other's pauses against the rest of the listening frames."""
    score: float | None
    """Mean of the parts whose anchors are far enough apart."""


def nod_energy(pitch: Array) -> Array:
    """Smoothed speed of the quick part of the head's pitch, float [T]."""
    quick = smooth(pitch, NOD_BAND_FRAMES[0]) - smooth(pitch, NOD_BAND_FRAMES[1])
    return smooth(np.abs(np.gradient(quick)), ENERGY_FRAMES)


def pauses(listen: Array) -> Array:
    """Frames at which the other falls silent, int [P], from int16 [1000 T] of the other's voice alone."""
    level = np.sqrt((listen.astype(np.float64).reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1))
    loud = level > SPEECH_LEVEL
    need = round(PAUSE_S * VIDEO_FPS)
    starts = [t for t in range(1, len(loud) - need) if loud[t - 1] and not loud[t : t + need].any()]
    return np.array(starts, int)


def after_pauses(truth: Truth) -> Array:
    """Bool [T]: 0.2-0.8 s after one of the other's pauses."""
    mask = np.zeros(len(truth.state), bool)
    first, last = (round(s * VIDEO_FPS) for s in REACTION_S)
    for start in pauses(truth.listen):
        mask[start + first : start + last + 1] = True
    return mask


def nod_match(reaction: Reaction, truth: Truth) -> float:
    quiet = truth.state != SPEAK
    return pearson(nod_energy(reaction.pitch)[quiet], nod_energy(truth.pitch)[quiet])


def smile_match(reaction: Reaction, truth: Truth) -> float:
    quiet = truth.state != SPEAK
    if quiet.sum() < MIN_FRAMES or truth.warmth[quiet].std() < 0.01:
        return float("nan")
    return pearson(smooth(reaction.smile, 2)[quiet], smooth(truth.warmth, 2)[quiet])


def pause_lift(reaction: Reaction, truth: Truth) -> float:
    quiet, after = truth.state != SPEAK, after_pauses(truth)
    if min((quiet & after).sum(), (quiet & ~after).sum()) < MIN_FRAMES:
        return float("nan")
    quick = smooth(reaction.pitch, NOD_BAND_FRAMES[0]) - smooth(reaction.pitch, NOD_BAND_FRAMES[1])
    speed = np.abs(np.gradient(quick))
    inside, outside = float(speed[quiet & after].mean()), float(speed[quiet & ~after].mean())
    return float(np.log2(inside / outside)) if min(inside, outside) > 1e-9 else 0.0


def listening_scores(
    generated: list[Reaction], autoencoded: list[Reaction], truths: list[Truth], groups: list[str]
) -> ListeningScores:
    """Score what was read from the videos.

    Args:
        generated: of each generated video.
        autoencoded: of the truth passed through the autoencoder.
        truths: truth tracks.
        groups: conversation of each case.
    """
    parts = [
        anchored(
            np.array([[measure(r, t) for t in truths] for r in generated]),
            np.array([measure(r, t) for r, t in zip(autoencoded, truths, strict=True)]),
            groups,
        )
        for measure in (nod_match, smile_match, pause_lift)
    ]
    return ListeningScores(nod=parts[0], smile=parts[1], lift=parts[2], score=mean_score(parts))
