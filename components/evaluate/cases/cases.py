"""Test cases of LPM-Bench and their ground truth."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lpm_model.config import SAMPLES_PER_FRAME, STATES

Array = npt.NDArray[Any]
IDLE, SPEAK, LISTEN = (STATES[name] for name in ("idle", "speak", "listen"))
"""Values of `Truth.state`."""


SIGNALS = ("jaw_open", "smile", "brow", "pitch")
"""Truth signals that the probes read."""


NOTE = "performer's held-out people and sentences"
"""What the benchmark set is, for the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What really happened on T frames."""

    jaw_open: Array
    """float [T]: 0 closed, 1 wide open."""
    smile: Array
    """float [T]: mean of both corners."""
    brow: Array
    """float [T]: inner brow raise."""
    pitch: Array
    """float [T]: head pitch in radians, positive looks down."""
    state: Array
    """uint8 [T]: IDLE, SPEAK or LISTEN."""
    warmth: Array
    """float [T]: the part of the smile that the other's voice causes."""
    listen: Array
    """int16 [1000 T]: the other's voice alone."""

    def __post_init__(self) -> None:
        frames = len(self.state)
        for name in (*SIGNALS, "warmth"):
            if len(getattr(self, name)) != frames:
                raise ValueError(f"truth {name} has {len(getattr(self, name))} frames, state {frames}: cut both alike")
        if self.listen.size != frames * SAMPLES_PER_FRAME:
            raise ValueError(f"truth listen has {self.listen.size} samples for {frames} frames: give 1000 a frame")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One side of one conversation."""

    name: str
    """Unique, fit for a file name."""
    group: str
    """Conversation."""
    person: int
    """Identity seed."""
    image: Array
    """uint8 [H, W, 3]: the frame before the first one that is generated."""
    reference: Array
    """uint8 [H, W, 3]: a frame from outside the span."""
    frames: Array
    """uint8 [T, H, W, 3]: the true frames."""
    speak: Array
    """int16 [1000 T]: the person's own voice alone."""
    truth: Truth
    """Truth on the same T frames."""
    text: str
    """What the person says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeClip:
    """One of the people on whom the instruments are fitted."""

    frames: Array
    """uint8 [4k + 1, H, W, 3]."""
    signals: dict[str, Array]
    """Truth signals, float [4k + 1] each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """The whole benchmark set."""

    cases: list[Case]
    """Scored cases of equal length."""
    talk: Case
    """One long conversation: drift and talk.mp4."""
    probes: list[ProbeClip]
    """People on whom the instruments are fitted."""
    digest: str
    """Names the set: its configuration and the code that renders it."""
