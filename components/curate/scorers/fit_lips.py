"""Fits the linear map from audio to mouth opening that the lip-sync scorer ships."""

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import STATES

_RIDGE = 30.0


def fit(conversations: int, seconds: float = 25.0, seed: int = 7) -> dict[str, NDArray[np.float32]]:
    """Weights (`map` [216], `mean` [216]) by ridge regression on the sound and the jaws of performed conversations."""
    from components.curate.scorers.lips import features
    from components.performer.compose import conversation
    from components.performer.config import PerformerConfig
    from components.performer.tracks import ARKIT_INDEX

    seen, wanted = [], []
    for index in range(conversations):
        config = PerformerConfig(conversations=conversations, seconds_per_conversation=seconds, seed=seed)
        sides, performances = conversation(config, index)
        for own, other in (("a", "b"), ("b", "a")):
            mixed = sides[own].pcm.astype(np.float32) + 0.5 * sides[other].pcm
            speaks = performances[own].state == STATES["speak"]
            jaw = performances[own].tracks.blendshapes[:, ARKIT_INDEX["jawOpen"]][speaks]
            seen.append(features(np.clip(mixed, -32768, 32767).astype(np.int16))[speaks])
            wanted.append(jaw - jaw.mean())
    spectra, target = np.concatenate(seen), np.concatenate(wanted)
    mean = spectra.mean(axis=0)
    centred = (spectra - mean).astype(np.float64)
    solved = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(centred.shape[1]), centred.T @ target)
    return {"map": solved.astype(np.float32), "mean": mean.astype(np.float32)}
