"""What a scorer is: a small class that watches frames stream by, or looks at a finished clip, and gives numbers.

Scorers never decide: `Thresholds` in config.py does, by the names of the columns.
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.video.reduced import Frame

if TYPE_CHECKING:
    from components.curate.video.analysis import Analysis
    from components.curate.video.crops import Crop
    from components.curate.video.faces import Track

_SAMPLED, _SAMPLED_PX = 16, 160


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One person's finished clip and all that is known about it."""

    own: "Analysis"
    """First pass of the source."""
    start: int
    """First frame in the source."""
    pictures: NDArray[np.uint8]
    """RGB crop [T, S, S, 3]."""
    crop: "Crop"
    """Where it lies in the source."""
    track: "Track"
    """The person over the whole shot."""
    others: list[NDArray[np.float32]]
    """Face boxes [T, 4] of everybody else in source pixels; NaN where not seen."""
    states: NDArray[np.uint8]
    """0 idle, 1 speak, 2 listen by frame [T]."""
    confidence: NDArray[np.float32]
    """Probability of the state by frame [T]."""
    copied: NDArray[np.bool_]
    """Frames [T] that an earlier source shows as well."""
    strange: NDArray[np.bool_]
    """Frames [T] with a voice off the scene with which the person does not talk."""

    @property
    def frames(self) -> int:
        """Length T."""
        return len(self.pictures)

    @property
    def span(self) -> slice:
        """The clip's frames in the source."""
        return slice(self.start, self.start + self.frames)

    @property
    def rows(self) -> NDArray[np.float32]:
        """The person's features [T, F] by faces.FEATURES."""
        return self.track.values[self.start - self.track.start :][: self.frames]

    @functools.cached_property
    def sampled(self) -> NDArray[np.uint8]:
        """About 16 of the pictures, at most 160 px wide: RGB [n, s, s, 3]."""
        import cv2

        chosen = self.pictures[:: max(self.frames // _SAMPLED, 1)]
        if chosen.shape[1] <= _SAMPLED_PX:
            return chosen
        size = (_SAMPLED_PX, _SAMPLED_PX)
        return np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in chosen])

    @functools.cached_property
    def face_box(self) -> NDArray[np.float32]:
        """Median face box (x0, y0, x1, y1) as shares of the crop's side."""
        box = np.nanmedian(self.rows[:, :4], axis=0)
        corner = np.array([self.crop.x, self.crop.y, self.crop.x, self.crop.y], np.float32)
        return np.asarray((box - corner) / self.crop.side, np.float32)

    def trace(self, name: str) -> NDArray[np.float32]:
        """Rows of a watcher's trace that fall into the clip; column 0 is the frame of the source."""
        whole = self.own.traces[name]
        return whole[(whole[:, 0] >= self.start) & (whole[:, 0] < self.start + self.frames)]


Scores = dict[str, float | None]
"""Value by column; None where it cannot be told."""


class Watcher(ABC):
    """Sees every frame of one source once, in order, and keeps a few numbers of some."""

    @abstractmethod
    def push(self, frame: Frame) -> None:
        """Take the next frame."""

    @abstractmethod
    def trace(self) -> NDArray[np.float32]:
        """What was kept, float32 [rows, columns]; column 0 is the frame."""


_WANTED = {"dover": "DOVER as ONNX", "light_asd": "Light-ASD's weights as safetensors"}
"""What the user gives a plug-in."""


def given_file(scorer: str, given: str) -> Path:
    """The file that the config gives a plug-in.

    Raises:
        ValueError: there is none.
    """
    path = Path(given)
    if not path.is_file():
        raise wrong_file(scorer, given, "is no file")
    return path


def wrong_file(scorer: str, given: Path | str, why: str) -> ValueError:
    """The error of a file that the config gives a plug-in, such as "is no file", with what to do."""
    return ValueError(
        f"scorers.{scorer} is {str(given)!r}, which {why}: give {_WANTED[scorer]} (the README of curate says how), or "
        f"take {scorer} out of scorers.extra"
    )


class Scorer(ABC):
    """One measurement of clips; made once a process."""

    name: ClassVar[str]
    """Name of the scorer, and of its trace."""
    version: ClassVar[str]
    """Raised whenever the same clip gets other numbers: old results are then measured again."""
    licence: ClassVar[str] = "Apache-2.0"
    """Of code and weights."""
    weights_sha256: ClassVar[str | None] = None
    """Digest of the weights that come with a package, None where there are none."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that it adds to the manifest."""

    @classmethod
    def make(cls, config: ScorerConfig) -> Self:
        """The scorer as a config wants it; starts its network.

        Raises:
            ValueError: its weights are missing, or are none.
        """
        return cls()

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        """Digest of the weights it would run with, without starting anything."""
        return cls.weights_sha256

    def watch(self) -> Watcher | None:
        """A new watcher for one source; None where clips are enough."""
        return None

    @abstractmethod
    def score(self, clip: Clip) -> Scores:
        """A value for each column."""

    @classmethod
    def passport(cls, config: ScorerConfig) -> dict[str, Any]:
        """Who makes the columns: written to dataset.json."""
        return {
            "name": cls.name,
            "version": cls.version,
            "licence": cls.licence,
            "weights_sha256": cls.weights_digest(config),
            "columns": list(cls.columns),
        }
