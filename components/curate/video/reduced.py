"""Frames reduced once for everything that only needs a small image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from components.curate.video.frame import Picture


SMALL_PX = 96
"""Longer side of the reduced picture that all watchers of a frame share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One decoded frame of a source on its way past the watchers."""

    number: int
    """Frame at 24 fps."""
    shown: "Picture"
    """The frame at the size in which sources are looked at; keep no reference to it."""
    small: NDArray[np.uint8]
    """RGB, longer side SMALL_PX."""
    grey: NDArray[np.uint8]
    """Grey values of `small`."""
    new: bool
    """False where a slow source's picture is shown again."""

    @property
    def picture(self) -> NDArray[np.uint8]:
        """RGB [H, W, 3], converted by the first who asks; keep no reference to it."""
        return self.shown.rgb


Reduced = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""The reduced picture of a frame and its grey values."""


def reduced(number: int, shown: "Picture", again: Reduced | None = None) -> Frame:
    """A frame with its reduced picture, made once for all that watch; `again` is that of a picture shown once more."""
    import cv2

    small = shown.small(SMALL_PX) if again is None else again[0]
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8) if again is None else again[1]
    return Frame(number=number, shown=shown, small=small, grey=grey, new=again is None)
