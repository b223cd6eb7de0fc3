"""Drift meter: compares a video with its beginning in identity, colour, sharpness and motion, at any length.

The only drift module: the live server, evaluation and benchmarks use it. Changes between frames are in units of 1/255.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import VIDEO_FPS

Array = NDArray[np.floating]
Video = NDArray[np.uint8]

GRID = 16
"""Side (px) of the thumbnail that replaces a face embedding where none is given."""
READ_PX = 128
"""Larger frames are subsampled to about this side."""
FREEZE_EPS = 0.15
"""Mean change between frames below which a window counts as frozen; idle ground truth is several times above it."""


def mean_lab(video: Video) -> Array:
    """Return the mean CIE Lab colour of every frame, float [T, 3], of a uint8 video [T, H, W, 3]."""
    import cv2

    return np.array([cv2.cvtColor(f.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).mean((0, 1)) for f in video])


def laplacian_energy(video: Video) -> Array:
    """Return the sharpness of every frame (variance of the Laplacian of luma), float [T], of a video [T, H, W, 3]."""
    import cv2

    lumas = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in video)
    return np.array([float(cv2.Laplacian(luma, cv2.CV_32F).var()) for luma in lumas])


def frame_change(video: Video) -> Array:
    """Return the mean absolute change from each frame to the next, float [T - 1]."""
    return np.array([float(np.abs(b.astype(np.int16) - a).mean()) for a, b in zip(video[:-1], video[1:], strict=True)])


def cosine_distance(a: Array, b: Array) -> float:
    """Return 1 - cosine of the means of two sets of embeddings [N, D]."""
    x, y = a.mean(0), b.mean(0)
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return 1 - float(x @ y) / scale if scale > 1e-12 else 1.0


def sharpness_log2(first: Array, last: Array) -> float:
    """Return log2 of the ratio of two Laplacian energies [T]; negative means that the last is blurrier."""
    return float(np.log2((last.mean() + 1e-6) / (first.mean() + 1e-6)))


def thumbnails(video: Video) -> Array:
    """Return thumbnails without mean colour, float [T, GRID * GRID * 3]: they distinguish people, not expressions."""
    import cv2

    small = np.stack([cv2.resize(f, (GRID, GRID), interpolation=cv2.INTER_AREA) for f in video]).astype(np.float32)
    return np.asarray((small - small.mean((1, 2), keepdims=True)).reshape(len(video), -1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """One window of a conversation compared with its first one."""

    identity: float
    """Distance (1 - cosine) of the mean embeddings."""
    colour_de: float
    """Distance of the mean colours in CIE Lab."""
    sharpness_log2: float
    """See the function `sharpness_log2`."""
    motion: float
    """Mean change between frames of this window."""

    @property
    def frozen(self) -> bool:
        """Whether nothing moves."""
        return self.motion < FREEZE_EPS


@dataclass(slots=True)
class _Window:
    """Statistics of the frames of a window."""

    embeddings: list[Array] = field(default_factory=list)
    labs: list[Array] = field(default_factory=list)
    sharpness: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)
    frames: int = 0

    def joined(self) -> tuple[Array, Array, Array]:
        """Return embeddings [n, D], colours [n, 3] and sharpness [n]."""
        return np.concatenate(self.embeddings), np.concatenate(self.labs), np.concatenate(self.sharpness)


class DriftMeter:
    """Compares every window of a conversation with the first; stores statistics and one frame.

    Args:
        window_s: length of a window (s).
        every: colour, sharpness and embedding use every n-th frame only; motion uses all.
    """

    def __init__(self, window_s: float = 2.0, every: int = 4) -> None:
        self._size, self._every = max(2, round(window_s * VIDEO_FPS)), every
        self._seen = 0
        self._last: Video | None = None
        self._window = _Window()
        self._first: tuple[Array, Array, Array] | None = None

    def add(self, frames: Video, embeddings: Array | None = None) -> list[Drift]:
        """Add the next frames.

        Args:
            frames: uint8 [T, H, W, 3].
            embeddings: [T, D] of the same frames; None uses `thumbnails`.

        Returns:
            The windows that these frames completed, except the first, which is the reference.
        """
        completed = []
        while len(frames):
            count = min(len(frames), self._size - self._window.frames)
            self._measure(frames[:count], None if embeddings is None else embeddings[:count])
            frames, embeddings = frames[count:], None if embeddings is None else embeddings[count:]
            if self._window.frames == self._size:
                drift = self._close()
                completed += [] if drift is None else [drift]
        return completed

    def _measure(self, frames: Video, embeddings: Array | None) -> None:
        step = max(1, min(frames.shape[1:3]) // READ_PX)
        small, window = np.ascontiguousarray(frames[:, ::step, ::step]), self._window
        picked = slice(-self._seen % self._every, None, self._every)
        sampled = small[picked]
        if len(sampled):
            window.embeddings.append(thumbnails(sampled) if embeddings is None else embeddings[picked])
            window.labs.append(mean_lab(sampled))
            window.sharpness.append(laplacian_energy(sampled))
        joined = small if self._last is None else np.concatenate([self._last, small])
        window.changes.append(frame_change(joined))
        self._last = small[-1:]
        window.frames += len(frames)
        self._seen += len(frames)

    def _close(self) -> Drift | None:
        window, self._window = self._window, _Window()
        if self._first is None:
            self._first = window.joined()
            return None
        (embedding, lab, sharpness), first = window.joined(), self._first
        return Drift(
            identity=cosine_distance(first[0], embedding),
            colour_de=float(np.linalg.norm(lab.mean(0) - first[1].mean(0))),
            sharpness_log2=sharpness_log2(first[2], sharpness),
            motion=float(np.concatenate(window.changes).mean()),
        )
