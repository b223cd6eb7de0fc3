"""Arithmetic shared by all metrics: correlations, lags, anchors, bootstrap. Pure functions on arrays.

A metric is a square matrix: entry (i, j) scores the generated video of case i against the ground truth of case j. Its
diagonal is the value, the rest is the shuffled condition (anchor 0); the reconstructed ground truth gives anchor 1.
"""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import Array

MIN_FRAMES = 12
"""Minimum number of frames (half a second) for a correlation."""
MIN_ANCHOR_GAP = 0.05
"""Anchors closer than this cannot separate a good video from a bad one: the metric has no score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchored:
    """One metric between its anchors."""

    score: float | None
    """(value - shuffled) / (ground_truth - shuffled), or None where the anchors are too close."""
    low: float | None
    """Lower end of the 90 % bootstrap interval of the score over cases."""
    high: float | None
    """Upper end of the interval."""
    value: float
    """Raw value of the generated videos, mean over cases."""
    ground_truth: float
    """Raw value of the reconstructed ground truth: anchor 1."""
    shuffled: float
    """Raw value of the generated videos against the ground truth of other cases: anchor 0."""
    per_case: tuple[float | None, ...]
    """Raw value of each case, None where it is undefined."""


def pearson(a: Array, b: Array) -> float:
    """Return the Pearson correlation of two signals; 0 if one is constant, NaN if they are shorter than MIN_FRAMES."""
    if a.size < MIN_FRAMES:
        return float("nan")
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale > 1e-12 else 0.0


def lagged_correlation(signal: Array, ground_truth: Array, mask: Array, max_lag: int) -> tuple[float, int]:
    """Find the lag with the highest correlation.

    Args:
        signal: float [T], measured in the video.
        ground_truth: float [T].
        mask: bool [T], the ground-truth frames to use.
        max_lag: frames tried to either side.

    Returns:
        The highest correlation and its lag in frames; positive means that the video lags the ground truth.
    """
    best, best_lag = float("nan"), 0
    index = np.flatnonzero(mask)
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        inside = index[(index + lag >= 0) & (index + lag < signal.size)]
        value = pearson(signal[inside + lag], ground_truth[inside])
        if np.isnan(best) or value > best + 1e-9:
            best, best_lag = value, lag
    return best, best_lag


def smooth(signal: Array, sigma_frames: float) -> Array:
    """Smooth along the last axis with a Gaussian; the ends are repeated."""
    from scipy.ndimage import gaussian_filter1d

    out: Array = gaussian_filter1d(np.asarray(signal, np.float64), sigma_frames, axis=-1, mode="nearest")
    return out


def normalise(value: float, ground_truth: float, shuffled: float) -> float | None:
    """Scale a value to its anchors: 1 at `ground_truth`, 0 at `shuffled`; None if the anchors nearly coincide."""
    if not np.isfinite([value, ground_truth, shuffled]).all() or abs(ground_truth - shuffled) < MIN_ANCHOR_GAP:
        return None
    return (value - shuffled) / (ground_truth - shuffled)


def anchored(generated: Array, ground_truth: Array, groups: list[str], *, draws: int = 1000, seed: int = 0) -> Anchored:
    """Compute one metric between its anchors from a score matrix.

    Args:
        generated: float [N, N], generated video i against ground truth j; NaN where undefined.
        ground_truth: float [N], reconstructed ground truth i against ground truth i.
        groups: conversation of each case; the other side of the same conversation is not used for the shuffled
            condition unless there is no other case.
        draws: number of bootstrap draws over cases.
        seed: seed of the bootstrap.
    """
    count = len(groups)
    other = np.array([[groups[i] != groups[j] for j in range(count)] for i in range(count)])
    if not other.any():
        other = ~np.eye(count, dtype=bool)
    value = np.diagonal(generated).astype(float)
    shuffled = np.array([nanmean(generated[i][other[i]]) for i in range(count)])
    usable = np.flatnonzero(np.isfinite(value) & np.isfinite(ground_truth))
    per_case = tuple(round(float(v), 4) if np.isfinite(v) else None for v in value)
    if not usable.size:
        nan = float("nan")
        return Anchored(score=None, low=None, high=None, value=nan, ground_truth=nan, shuffled=nan, per_case=per_case)

    def means(rows: Array) -> tuple[float, float, float]:
        return float(value[rows].mean()), float(ground_truth[rows].mean()), nanmean(shuffled[rows])

    rng = np.random.default_rng(seed)
    drawn = [normalise(*means(rng.choice(usable, usable.size))) for _ in range(draws)]
    valid = [d for d in drawn if d is not None]
    point = means(usable)
    score = normalise(*point)
    low, high = np.percentile(valid, [5, 95]) if valid and score is not None else (None, None)
    return Anchored(
        score=score,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        value=point[0],
        ground_truth=point[1],
        shuffled=point[2],
        per_case=per_case,
    )


def nanmean(values: Array) -> float:
    """Return the mean of the finite entries; NaN if there are none."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else float("nan")


def mean_score(parts: list[Anchored]) -> float | None:
    """Return the mean score of the metrics that have one; None if none has."""
    scores = [p.score for p in parts if p.score is not None]
    return float(np.mean(scores)) if scores else None
