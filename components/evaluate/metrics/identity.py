"""Identity: whether every generated frame is closer to its own person than to anybody else.

The embedding is fitted on ground-truth renders of other people (PCA, then linear discriminant analysis), so it is an
in-domain probe, not a published face embedding.
"""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import Array
from components.evaluate.metrics.anchored import Anchored, anchored

GRID = 16
"""Side of the colour thumbnail that is embedded."""
COMPONENTS = 96
"""Principal components before the discriminant analysis."""
DIRECTIONS = 24
"""Discriminant directions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedder:
    """Maps frames to embeddings in which frames of one person are close together."""

    mean: Array
    """float [D]: mean thumbnail."""
    basis: Array
    """float [D, DIRECTIONS]."""

    def embed(self, video: Array) -> Array:
        """Embed a uint8 video [T, H, W, 3] as unit vectors, float [T, DIRECTIONS]."""
        points: Array = (thumbnails(video) - self.mean) @ self.basis
        length: Array = np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
        return points / length


def thumbnails(video: Array) -> Array:
    """Downsample the centre of every frame under an oval mask, float [T, GRID * GRID * 3] in 0..1."""
    import cv2

    size = video.shape[1]
    top, bottom, left, right = (round(fraction * size) for fraction in (0.05, 0.95, 0.12, 0.88))
    y, x = np.mgrid[0:GRID, 0:GRID] / (GRID - 1) * 2 - 1
    oval = ((x / 0.85) ** 2 + (y / 0.95) ** 2 < 1).astype(np.float32)[None, :, :, None]
    cut: list[Array] = [
        cv2.resize(f[top:bottom, left:right], (GRID, GRID), interpolation=cv2.INTER_AREA) for f in video
    ]
    flat: Array = (np.stack(cut).astype(np.float32) / 255 * oval).reshape(len(video), -1)
    return flat


def fit_embedder(people: list[Array]) -> Embedder:
    """Fit the embedding.

    Args:
        people: uint8 [T, H, W, 3] of each person; at least two.
    """
    inputs = [thumbnails(video) for video in people]
    stack = np.concatenate(inputs)
    mean = stack.mean(0)
    values, vectors = np.linalg.eigh(np.cov(stack - mean, rowvar=False))
    principal = vectors[:, np.argsort(values)[::-1][:COMPONENTS]]
    points = [(x - mean) @ principal for x in inputs]
    within = np.mean([np.cov(p, rowvar=False) for p in points], axis=0)
    within += np.eye(len(within)) * 0.02 * np.trace(within) / len(within)
    spread, axes = np.linalg.eigh(within)
    whiten = axes / np.sqrt(spread)
    centres = np.stack([p.mean(0) for p in points]) @ whiten
    _, _, directions = np.linalg.svd(centres - centres.mean(0), full_matrices=False)
    return Embedder(mean=mean, basis=principal @ whiten @ directions[:DIRECTIONS].T)


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityScores:
    """Identity of all cases."""

    nearest: Anchored
    """Fraction of frames that are closest to the right person."""
    similarity: Anchored
    """Mean cosine to the right person's mean embedding."""
    matches: tuple[tuple[float, ...], ...]
    """Fraction of generated case i's frames that are closest to person j."""


def identity_scores(
    generated: list[Array], reconstructed: list[Array], ground_truth: list[Array], groups: list[str]
) -> IdentityScores:
    """Score embeddings.

    Args:
        generated: [T, D] of each generated video.
        reconstructed: [T, D] of each reconstructed ground truth.
        ground_truth: [T, D] of each ground truth; its mean is the person's centre.
        groups: conversation of each case; people of one conversation are different people.
    """
    centres = np.stack([t.mean(0) for t in ground_truth])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)

    def fractions(points: Array) -> Array:
        nearest = np.argmax(points @ centres.T, axis=1)
        return np.bincount(nearest, minlength=len(centres)) / len(nearest)

    matches = np.stack([fractions(p) for p in generated])
    cosines = np.stack([(p @ centres.T).mean(0) for p in generated])
    return IdentityScores(
        nearest=anchored(matches, np.array([fractions(p)[i] for i, p in enumerate(reconstructed)]), groups),
        similarity=anchored(cosines, np.array([(p @ centres[i]).mean() for i, p in enumerate(reconstructed)]), groups),
        matches=tuple(tuple(round(float(v), 4) for v in row) for row in matches),
    )
