"""The scorer interface: a small class that measures a finished clip, or every frame of a source as it is decoded.

Scorers never decide. `Thresholds` in config.py decides by column name.
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.video.reduced import StreamedFrame

if TYPE_CHECKING:
    from components.curate.video.analysis import Analysis
    from components.curate.video.crops import Crop
    from components.curate.video.faces import Track

_SAMPLED, _SAMPLED_PX = 16, 160


@dataclass(frozen=True, kw_only=True)
class ClipView:
    """The input of a scorer: one person's finished clip of T frames."""

    analysis: "Analysis"
    """Analysis of the whole source."""
    start: int
    """First frame in the source."""
    rgb: NDArray[np.uint8]
    """Cropped RGB frames [T, S, S, 3]."""
    crop: "Crop"
    """Square of the crop in source pixels."""
    track: "Track"
    """Face track of the person over the whole shot."""
    others: list[NDArray[np.float32]]
    """Face boxes [T, 4] of everybody else in source pixels; NaN where not detected."""
    states: NDArray[np.uint8]
    """0 idle, 1 speak, 2 listen, 255 discard, uint8 [T]."""
    confidence: NDArray[np.float32]
    """Probability of the state, float32 [T]."""
    copied: NDArray[np.bool_]
    """Frames that are a copy of an earlier source, bool [T]."""
    offscreen_speech: NDArray[np.bool_]
    """Frames with an off-screen voice that the person does not answer, bool [T]."""

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.rgb)

    @property
    def span(self) -> slice:
        """The clip's frames as a slice of the source."""
        return slice(self.start, self.start + self.frames)

    @property
    def features(self) -> NDArray[np.float32]:
        """The person's face features, float32 [T, F], columns as in faces.FEATURES."""
        return self.track.values[self.start - self.track.start :][: self.frames]

    @functools.cached_property
    def sampled_rgb(self) -> NDArray[np.uint8]:
        """16 to 31 evenly spaced frames (all of a shorter clip), at most 160 px wide: RGB [n, s, s, 3]."""
        import cv2

        frames = self.rgb[:: max(self.frames // _SAMPLED, 1)]
        if frames.shape[1] <= _SAMPLED_PX:
            return frames
        size = (_SAMPLED_PX, _SAMPLED_PX)
        return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])

    @functools.cached_property
    def face_box(self) -> NDArray[np.float32]:
        """Median face box (x0, y0, x1, y1) as fractions of the crop's side."""
        box = np.nanmedian(self.features[:, :4], axis=0)
        corner = np.array([self.crop.x, self.crop.y, self.crop.x, self.crop.y], np.float32)
        return np.asarray((box - corner) / self.crop.side, np.float32)

    def trace(self, name: str) -> NDArray[np.float32]:
        """Return the rows of a streaming scorer's trace within the clip; column 0 is the source frame."""
        whole = self.analysis.traces[name]
        return whole[(whole[:, 0] >= self.start) & (whole[:, 0] < self.start + self.frames)]


Scores = dict[str, float | None]
"""Value by column; None where it cannot be measured."""


class StreamingScorer(ABC):
    """Receives every frame of one source once, in order, and accumulates a small trace."""

    @abstractmethod
    def push(self, frame: StreamedFrame) -> None:
        """Process the next frame."""

    @abstractmethod
    def trace(self) -> NDArray[np.float32]:
        """Return the trace, float32 [rows, columns]; column 0 is the frame number."""


_WEIGHTS_KIND = {"dover": "DOVER as ONNX", "light_asd": "Light-ASD's weights as safetensors"}
"""Weights that the user supplies for an optional scorer."""


def weights_file(scorer: str, configured: str) -> Path:
    """Return the weights file that the config gives for an optional scorer.

    Raises:
        ValueError: the file does not exist.
    """
    path = Path(configured)
    if not path.is_file():
        raise invalid_weights(scorer, configured, "is not a file")
    return path


def invalid_weights(scorer: str, configured: Path | str, reason: str) -> ValueError:
    """Return the error for an unusable weights file, with a reason such as "is not a file" and the remedy."""
    return ValueError(
        f"scorers.{scorer} is {str(configured)!r}, which {reason}: give {_WEIGHTS_KIND[scorer]} (see "
        f"components/curate/scorers/README.md), or remove {scorer} from scorers.extra"
    )


class Scorer(ABC):
    """One measurement of clips; instantiated once per process."""

    name: ClassVar[str]
    """Name in `scorers.disabled`, `scorers.extra`, dataset.json and timing.json, and of the trace."""
    version: ClassVar[str]
    """Increase it whenever the same clip gets different numbers: cached results are then recomputed."""
    licence: ClassVar[str] = "Apache-2.0"
    """SPDX licence of code and weights."""
    weights_sha256: ClassVar[str | None] = None
    """Digest of packaged weights, None without weights."""
    columns: ClassVar[tuple[str, ...]]
    """Manifest columns that the scorer fills."""

    @classmethod
    def make(cls, config: ScorerConfig) -> Self:
        """Instantiate the scorer and load its network.

        Raises:
            ValueError: its weights are missing or invalid.
        """
        return cls()

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        """Return the digest of the scorer's weights without loading them; None if it has none."""
        return cls.weights_sha256

    def start_stream(self) -> StreamingScorer | None:
        """Return a new streaming scorer for one source; None if the scorer only needs clips."""
        return None

    @abstractmethod
    def score(self, clip: ClipView) -> Scores:
        """Return a value for each column; None where it cannot be measured."""

    @classmethod
    def describe(cls, config: ScorerConfig) -> dict[str, Any]:
        """Return the provenance of the columns, as written to dataset.json."""
        return {
            "name": cls.name,
            "version": cls.version,
            "licence": cls.licence,
            "weights_sha256": cls.weights_digest(config),
            "columns": list(cls.columns),
        }
