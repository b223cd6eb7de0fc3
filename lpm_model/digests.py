"""Content digests: what a model, a dataset and a file are called wherever one is named."""

import hashlib
from pathlib import Path

RUN_MANIFEST = "run.json"
"""Lineage file in every output folder; no digest covers it, because it names that digest."""
DEPLOYMENT = ("deploy.json", "inferenceservice.yaml")
"""What deploy writes beside a released model."""


def file_digest(path: Path) -> str:
    """Hex SHA-256 of one file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path, *, exclude: frozenset[str] = frozenset()) -> str:
    """Hex SHA-256 over the relative names and contents of all files in a folder, `exclude`d names left out."""
    return _digest(folder, [p for p in folder.rglob("*") if p.is_file() and p.name not in exclude])


def model_digest(folder: Path) -> str:
    """Digest of a model folder, the same before and after deploy has released it."""
    return folder_digest(folder, exclude=frozenset({RUN_MANIFEST, *DEPLOYMENT}))


def weights_digest(folder: Path) -> str:
    """Digest of what a model folder computes with: shapes and weights, not characters or provenance."""
    parts = [folder / "config.json", *folder.glob("*.safetensors")]
    parts += [p for name in ("autoencoder", "encoders") for p in (folder / name).rglob("*") if p.is_file()]
    return _digest(folder, parts)


def dataset_digest(folder: Path) -> str:
    """Digest of a dataset folder over its manifest and shards: what a model can learn from."""
    return _digest(folder, [folder / "manifest.parquet", *(folder / "shards").glob("*.tar")])


def output_digest(folder: Path) -> str:
    """Digest of what a step wrote: of a dataset, of a model, or of any other folder."""
    return dataset_digest(folder) if (folder / "manifest.parquet").is_file() else model_digest(folder)


def _digest(folder: Path, paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()
