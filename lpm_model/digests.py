"""Content digests that identify models, datasets and files."""

import hashlib
from pathlib import Path

RUN_MANIFEST = "run.json"
"""Lineage file of an output folder; not part of the folder's digest, which it contains."""
DEPLOYMENT = ("deploy.json", "inferenceservice.yaml")
"""Files that deploy adds to a released model."""


def file_digest(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path, *, exclude: frozenset[str] = frozenset()) -> str:
    """Return the hex SHA-256 over the relative paths and contents of a folder's files, except names in `exclude`."""
    return _digest(folder, [p for p in folder.rglob("*") if p.is_file() and p.name not in exclude])


def model_digest(folder: Path) -> str:
    """Return the digest of a model folder, which is the same before and after its release."""
    return folder_digest(folder, exclude=frozenset({RUN_MANIFEST, *DEPLOYMENT}))


def weights_digest(folder: Path) -> str:
    """Return the digest of a model's shape and weights, without characters and provenance."""
    parts = [folder / "config.json", *folder.glob("*.safetensors")]
    parts += [p for name in ("autoencoder", "encoders") for p in (folder / name).rglob("*") if p.is_file()]
    return _digest(folder, parts)


def dataset_digest(folder: Path) -> str:
    """Return the digest of a dataset's manifest and shards."""
    return _digest(folder, [folder / "manifest.parquet", *(folder / "shards").glob("*.tar")])


def output_digest(folder: Path) -> str:
    """Return the digest of a step's output folder: a dataset, a model, or any other."""
    return dataset_digest(folder) if (folder / "manifest.parquet").is_file() else model_digest(folder)


def _digest(folder: Path, paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()
