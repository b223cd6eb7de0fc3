"""Names of the container images that the pipeline's tasks run in (built from infra/images, one tag per release)."""

from importlib.metadata import version

VERSION = version("lpm")
"""Version of the package, from pyproject.toml; the images of a release have it as their tag."""
CURATE_IMAGE = f"lpm/curate:{VERSION}"
"""Video libraries: ingest and curate."""
TRAIN_IMAGE = f"lpm/train:{VERSION}"
"""Torch, Lightning, MLflow: train, distill, evaluate and deploy."""
SERVE_IMAGE = f"lpm/serve:{VERSION}"
"""Model server: the InferenceService."""
