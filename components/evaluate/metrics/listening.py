"""Listening: whether nods, smiles and head movement follow the partner's audio as the ground truth's do."""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import SPEAK, Array, GroundTruth
from components.evaluate.metrics.anchored import MIN_FRAMES, Anchored, anchored, mean_score, pearson, smooth
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS

NOD_BAND_FRAMES = (1.0, 8.0)
"""Sigmas (frames) of the band-pass of head pitch: the first removes noise, the second slow posture."""
ENERGY_FRAMES = 5.0
"""Sigma (frames) of the nod energy: a nod counts within about a quarter of a second of the ground truth's."""
REACTION_S = (0.2, 0.8)
"""Window after the start of the partner's pause in which a reaction is expected (s)."""
PAUSE_S = 0.2
"""Shortest silence after speech that counts as a pause (s)."""
SPEECH_LEVEL = 300.0
"""RMS (of 32768) over which a frame of a clean voice counts as speech."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reaction:
    """Reaction signals measured in one video."""

    pitch: Array
    """float [T]: head pitch."""
    smile: Array
    """float [T]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListeningScores:
    """Listening of all cases."""

    nod: Anchored
    """Correlation of the nod energy with the ground truth's on frames where the character does not speak."""
    smile: Anchored
    """Correlation of the smile with the ground truth's on the same frames."""
    lift: Anchored
    """log2 of the head speed 0.2-0.8 s after the partner's pauses over that in the other listening frames."""
    score: float | None
    """Mean of the metrics whose anchors are far enough apart."""


def nod_energy(pitch: Array) -> Array:
    """Return the smoothed speed of band-passed head pitch, float [T]."""
    quick = smooth(pitch, NOD_BAND_FRAMES[0]) - smooth(pitch, NOD_BAND_FRAMES[1])
    return smooth(np.abs(np.gradient(quick)), ENERGY_FRAMES)


def pauses(listen: Array) -> Array:
    """Return the frames at which the partner falls silent, int [P], from the partner's audio, int16 [1000 T]."""
    level = np.sqrt((listen.astype(np.float64).reshape(-1, SAMPLES_PER_FRAME) ** 2).mean(1))
    loud = level > SPEECH_LEVEL
    need = round(PAUSE_S * VIDEO_FPS)
    starts = [t for t in range(1, len(loud) - need) if loud[t - 1] and not loud[t : t + need].any()]
    return np.array(starts, int)


def after_pauses(ground_truth: GroundTruth) -> Array:
    """Mark the frames 0.2-0.8 s after the partner's pauses, bool [T]."""
    mask = np.zeros(len(ground_truth.state), bool)
    first, last = (round(s * VIDEO_FPS) for s in REACTION_S)
    for start in pauses(ground_truth.listen):
        mask[start + first : start + last + 1] = True
    return mask


def nod_match(reaction: Reaction, ground_truth: GroundTruth) -> float:
    """Correlate nod energy with the ground truth on frames without own speech."""
    quiet = ground_truth.state != SPEAK
    return pearson(nod_energy(reaction.pitch)[quiet], nod_energy(ground_truth.pitch)[quiet])


def smile_match(reaction: Reaction, ground_truth: GroundTruth) -> float:
    """Correlate the smile with the ground truth on frames without own speech; NaN if it hardly varies."""
    quiet = ground_truth.state != SPEAK
    if quiet.sum() < MIN_FRAMES or ground_truth.warmth[quiet].std() < 0.01:
        return float("nan")
    return pearson(smooth(reaction.smile, 2)[quiet], smooth(ground_truth.warmth, 2)[quiet])


def pause_lift(reaction: Reaction, ground_truth: GroundTruth) -> float:
    """Return log2 of the head speed after the partner's pauses over that in the other listening frames."""
    quiet, after = ground_truth.state != SPEAK, after_pauses(ground_truth)
    if min((quiet & after).sum(), (quiet & ~after).sum()) < MIN_FRAMES:
        return float("nan")
    quick = smooth(reaction.pitch, NOD_BAND_FRAMES[0]) - smooth(reaction.pitch, NOD_BAND_FRAMES[1])
    speed = np.abs(np.gradient(quick))
    inside, outside = float(speed[quiet & after].mean()), float(speed[quiet & ~after].mean())
    return float(np.log2(inside / outside)) if min(inside, outside) > 1e-9 else 0.0


def listening_scores(
    generated: list[Reaction], reconstructed: list[Reaction], ground_truths: list[GroundTruth], groups: list[str]
) -> ListeningScores:
    """Score measured reactions.

    Args:
        generated: reactions in each generated video.
        reconstructed: reactions in each reconstructed ground truth.
        ground_truths: ground-truth tracks of each case.
        groups: conversation of each case.
    """
    parts = [
        anchored(
            np.array([[measure(r, t) for t in ground_truths] for r in generated]),
            np.array([measure(r, t) for r, t in zip(reconstructed, ground_truths, strict=True)]),
            groups,
        )
        for measure in (nod_match, smile_match, pause_lift)
    ]
    return ListeningScores(nod=parts[0], smile=parts[1], lift=parts[2], score=mean_score(parts))
