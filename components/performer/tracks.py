"""Motion tracks, one row per frame: output of `behaviour.py`, input of the renderer."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ARKIT_NAMES: Final[tuple[str, ...]] = (
    "browInnerUp", "browDown_L", "browDown_R", "browOuterUp_L", "browOuterUp_R",
    "eyeLookUp_L", "eyeLookUp_R", "eyeLookDown_L", "eyeLookDown_R",
    "eyeLookIn_L", "eyeLookIn_R", "eyeLookOut_L", "eyeLookOut_R",
    "eyeBlink_L", "eyeBlink_R", "eyeSquint_L", "eyeSquint_R", "eyeWide_L", "eyeWide_R",
    "cheekPuff", "cheekSquint_L", "cheekSquint_R", "noseSneer_L", "noseSneer_R",
    "jawOpen", "jawForward", "jawLeft", "jawRight",
    "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight",
    "mouthRollUpper", "mouthRollLower", "mouthShrugUpper", "mouthShrugLower", "mouthClose",
    "mouthSmile_L", "mouthSmile_R", "mouthFrown_L", "mouthFrown_R", "mouthDimple_L", "mouthDimple_R",
    "mouthUpperUp_L", "mouthUpperUp_R", "mouthLowerDown_L", "mouthLowerDown_R",
    "mouthPress_L", "mouthPress_R", "mouthStretch_L", "mouthStretch_R", "tongueOut",
)  # fmt: skip
"""The 52 ARKit blendshapes, named and ordered as in the packaged head; _L is the person's own left."""

ARKIT_INDEX: Final[dict[str, int]] = {name: index for index, name in enumerate(ARKIT_NAMES)}
"""Column of each blendshape in `Tracks.blendshapes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Face, head and gaze over T frames.

    Axes are right-handed with x to the right of the frame, y up and z towards the camera. So a positive pitch looks
    down, a positive yaw turns to the right of the frame (the person's own left), and a positive roll tilts the head
    to the left of the frame.
    """

    blendshapes: NDArray[np.float32]
    """[T, 52] weights in ARKIT_NAMES order; 0 is rest, 1 the full expression, a little outside is allowed."""
    rotation: NDArray[np.float32]
    """[T, 3] head pitch, yaw, roll in radians."""
    translation: NDArray[np.float32]
    """[T, 3] head x, y, z in head heights (chin to crown)."""
    gaze: NDArray[np.float32]
    """[T, 2] eye yaw, pitch in radians relative to the head."""

    def __post_init__(self) -> None:
        frames = len(self.blendshapes)
        for name, width, limit in (
            ("blendshapes", len(ARKIT_NAMES), 2.0),
            ("rotation", 3, 1.6),
            ("translation", 3, 2.0),
            ("gaze", 2, 1.6),
        ):
            values: NDArray[np.float32] = getattr(self, name)
            if values.dtype != np.float32 or values.shape != (frames, width):
                raise ValueError(
                    f"{name} is {values.dtype} {list(values.shape)}: give float32 [{frames}, {width}], a row per frame"
                )
            if values.size and not float(np.abs(values).max()) <= limit:
                raise ValueError(f"{name} holds values outside +-{limit} or not finite: check units (weights, radians)")

    def __len__(self) -> int:
        return len(self.blendshapes)

    def window(self, start: int, stop: int) -> "Tracks":
        """Return frames start to stop - 1 (views, not copies).

        Raises:
            ValueError: the span is not inside the tracks.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"window {start}..{stop} is outside 0..{len(self)}: give 0 <= start <= stop <= frames")
        return Tracks(
            blendshapes=self.blendshapes[start:stop],
            rotation=self.rotation[start:stop],
            translation=self.translation[start:stop],
            gaze=self.gaze[start:stop],
        )

    @classmethod
    def rest(cls, frames: int) -> "Tracks":
        """Return a neutral face that looks into the camera for `frames` frames."""
        return cls(
            blendshapes=np.zeros((frames, len(ARKIT_NAMES)), np.float32),
            rotation=np.zeros((frames, 3), np.float32),
            translation=np.zeros((frames, 3), np.float32),
            gaze=np.zeros((frames, 2), np.float32),
        )
