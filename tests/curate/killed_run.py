"""Curate in a process group of its own, to be killed: `python -m tests.curate.killed_run RAW DATASET AE EXECUTOR`."""

import sys
from pathlib import Path

from components.curate.config import CurationConfig
from components.curate.step import curate
from lpm_model.progress import NoProgress


def settings(autoencoder: str, executor: str) -> CurationConfig:
    """Return settings for a quick run."""
    workers = 1 if executor == "ray" else 2
    return CurationConfig(
        autoencoder=autoencoder, executor=executor, workers=workers, validate=False, max_clip_s=4.0, mesh_stride=6,
        min_retention=0.0,
    )  # fmt: skip


if __name__ == "__main__":
    curate(Path(sys.argv[1]), Path(sys.argv[2]), settings(sys.argv[3], sys.argv[4]), NoProgress())
