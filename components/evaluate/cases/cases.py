"""Test cases of LPM-Bench and their ground truth."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from lpm_model.config import SAMPLES_PER_FRAME, STATES

Array = npt.NDArray[Any]
IDLE, SPEAK, LISTEN = (STATES[name] for name in ("idle", "speak", "listen"))
"""Values of `GroundTruth.state`."""
SIGNALS = ("jaw_open", "smile", "brow", "pitch")
"""Ground-truth signals that the probes read."""
NOTE = "rendered held-out people and sentences"
"""Description of the benchmark set in the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruth:
    """Ground-truth tracks of one side over T frames."""

    jaw_open: Array
    """float [T]: 0 closed, 1 wide open."""
    smile: Array
    """float [T]: mean of both mouth corners."""
    brow: Array
    """float [T]: inner brow raise."""
    pitch: Array
    """float [T]: head pitch in radians, positive looks down."""
    state: Array
    """uint8 [T]: IDLE, SPEAK or LISTEN."""
    warmth: Array
    """float [T]: the part of the smile that the partner's audio causes."""
    listen: Array
    """int16 [1000 T]: the partner's audio alone."""

    def __post_init__(self) -> None:
        frames = len(self.state)
        for name in (*SIGNALS, "warmth"):
            if len(getattr(self, name)) != frames:
                count = len(getattr(self, name))
                raise ValueError(f"ground truth {name} has {count} frames, state {frames}: give equal lengths")
        if self.listen.size != frames * SAMPLES_PER_FRAME:
            size = self.listen.size
            raise ValueError(f"ground truth listen has {size} samples for {frames} frames: give 1000 per frame")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One side of one conversation."""

    name: str
    """Unique name, safe in file paths."""
    group: str
    """Conversation."""
    person: int
    """Identity seed."""
    image: Array
    """uint8 [H, W, 3]: the frame before the first generated one."""
    reference: Array
    """uint8 [H, W, 3]: a frame from outside the span."""
    frames: Array
    """uint8 [T, H, W, 3]: ground-truth frames."""
    speak: Array
    """int16 [1000 T]: the person's own speech alone."""
    ground_truth: GroundTruth
    """Tracks of the same T frames."""
    text: str
    """Text that the person speaks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeClip:
    """A clip of one of the people on whom the probes are fitted."""

    frames: Array
    """uint8 [4k + 1, H, W, 3]."""
    signals: dict[str, Array]
    """Ground-truth signals, float [4k + 1] each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """The whole benchmark set."""

    cases: list[Case]
    """Scored cases of equal length."""
    talk: Case
    """The long conversation, for drift and talk.mp4."""
    probes: list[ProbeClip]
    """People on whom the probes are fitted."""
    digest: str
    """Digest of the configuration and of the code that renders the set."""
