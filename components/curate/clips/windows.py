"""Cut a person's track into clips of 4k+1 frames, preferably where nobody speaks."""

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.labels.intervals import runs
from lpm_model.config import FRAMES_PER_LATENT

_SPEECH_COST = 1.0
_LENGTH_GAIN = 0.4
_WASTE_COST = 0.3


def cut_windows(
    usable: NDArray[np.bool_], speech: NDArray[np.float32], config: CurationConfig
) -> list[tuple[int, int]]:
    """Return windows (first frame, frames) inside the usable spans of a track.

    Args:
        usable: frames that may be shown, bool [T].
        speech: probability of speech, float32 [T]; a cut inside speech costs most.
        config: clip lengths and stride.
    """
    windows: list[tuple[int, int]] = []
    shortest, longest = config.clip_frames
    for at, stop in runs(usable):
        while stop - at >= shortest:
            frames = _best_length(speech, at, stop, shortest, longest)
            windows.append((at, frames))
            at += max(1, round(frames * config.stride))
    return windows


def _best_length(speech: NDArray[np.float32], at: int, stop: int, shortest: int, longest: int) -> int:
    """Return the best length (4k+1): long, ending in a pause, and without a remainder too short to use."""
    best, best_score = shortest, -np.inf
    for frames in range(shortest, min(longest, stop - at) + 1, FRAMES_PER_LATENT):
        end = at + frames
        rest = stop - end
        wasted = rest / shortest if 0 < rest < shortest else 0.0
        around = speech[max(end - 2, at) : end + 2]
        score = _LENGTH_GAIN * frames / longest - _SPEECH_COST * float(around.mean()) - _WASTE_COST * wasted
        if score > best_score:
            best, best_score = frames, score
    return best
