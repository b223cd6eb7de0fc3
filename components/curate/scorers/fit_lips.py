"""Fit the map from audio to mouth opening that the lip-sync scorer uses (lips.safetensors).

Run `python -m components.curate.scorers.fit_lips --out lips.safetensors`, replace the file next to this module, and
increase `Sync.version`. No other module imports this one: curation must not depend on the renderer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.lips import features
from lpm_model.config import STATES

_RIDGE = 30.0


def fit(conversations: int, seconds: float = 25.0, seed: int = 7) -> dict[str, NDArray[np.float32]]:
    """Fit the map to the audio and jaw motion of rendered conversations.

    Args:
        conversations: number of conversations, of two people each.
        seconds: length of a conversation.
        seed: seed of the conversations.

    Returns:
        `map` [216] and `mean` [216], float32.
    """
    from components.performer.compose import conversation
    from components.performer.config import PerformerConfig
    from components.performer.tracks import ARKIT_INDEX

    config = PerformerConfig(conversations=conversations, seconds_per_conversation=seconds, seed=seed)
    spectra, openings = [], []
    for index in range(conversations):
        sides, performances = conversation(config, index)
        for own, other in (("a", "b"), ("b", "a")):
            mixed = sides[own].pcm.astype(np.float32) + 0.5 * sides[other].pcm
            speaks = performances[own].state == STATES["speak"]
            jaw = performances[own].tracks.blendshapes[:, ARKIT_INDEX["jawOpen"]][speaks]
            spectra.append(features(np.clip(mixed, -32768, 32767).astype(np.int16))[speaks])
            openings.append(jaw - jaw.mean())
    return ridge_regression(np.concatenate(spectra), np.concatenate(openings))


def ridge_regression(spectra: NDArray[np.float32], openings: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
    """Regress mouth openings [N] on spectra [N, F]; returns `map` [F] and `mean` [F], float32."""
    mean = spectra.mean(axis=0)
    centred = (spectra - mean).astype(np.float64)
    solved = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(centred.shape[1]), centred.T @ openings)
    return {"map": solved.astype(np.float32), "mean": mean.astype(np.float32)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the map and write it as safetensors."""
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--conversations", type=int, default=20, help="rendered conversations to fit")
    parser.add_argument("--seconds", type=float, default=25.0, help="length of a conversation (s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the conversations")
    options = parser.parse_args(arguments)
    save_file(fit(options.conversations, options.seconds, options.seed), options.out)


if __name__ == "__main__":
    main()
