"""Frames downscaled once for all consumers that need only a small image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from components.curate.video.frame import DecodedFrame


SMALL_PX = 96
"""Longer side of the small image that all consumers of a frame share (px)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedFrame:
    """One decoded frame of a source, as streaming scorers and the shot detector receive it."""

    number: int
    """Frame at 24 fps."""
    decoded: "DecodedFrame"
    """The frame at the size at which sources are analysed; keep no reference to it."""
    small: NDArray[np.uint8]
    """RGB, longer side SMALL_PX."""
    grey: NDArray[np.uint8]
    """Grey values of `small`."""
    new: bool
    """False for a duplicate of the previous frame, as in sources below 24 fps."""

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3], converted at the first access; keep no reference to it."""
        return self.decoded.rgb


Reduced = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""The small image of a frame and its grey values."""


def reduced(number: int, decoded: "DecodedFrame", previous: Reduced | None = None) -> StreamedFrame:
    """Return a frame with its small image.

    Args:
        number: frame at 24 fps.
        decoded: the frame.
        previous: the small image of the previous frame if this one duplicates it, otherwise None.
    """
    import cv2

    small = decoded.small(SMALL_PX) if previous is None else previous[0]
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8) if previous is None else previous[1]
    return StreamedFrame(number=number, decoded=decoded, small=small, grey=grey, new=previous is None)
