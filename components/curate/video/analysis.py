"""What the first pass knows about one source."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import Track
from components.curate.video.probe import Probe
from components.dataset.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """What the first pass knows about one source; small enough to keep for every source."""

    source: Source
    """The line of sources.jsonl."""
    header: Probe
    """The file's header."""
    frames: int
    """Frames at 24 fps."""
    shots: list[tuple[int, int]]
    """First frame and frame after the last, per shot."""
    tracks: list[Track]
    """People, in order of appearance."""
    track: NDArray[np.int16]
    """Sound, int16 [frames * 1000]."""
    speech: NDArray[np.float32]
    """Probability of speech by frame."""
    loudness: NDArray[np.float32]
    """dB of full scale by frame."""
    luminance: NDArray[np.float32]
    """Mean grey value 0..255 by frame."""
    change: NDArray[np.float32]
    """Mean absolute change from the source picture before, 0..255; NaN where a picture is shown again."""
    transitions: list[tuple[int, int, str]]
    """First frame, frame after the last and kind (cut or dissolve) of what lies between shots."""
    hashes: NDArray[np.uint64]
    """Perceptual hash of every duplicates.EVERY-th frame."""
    traces: dict[str, NDArray[np.float32]]
    """What the scorers' watchers kept, by scorer: [rows, columns], column 0 is the frame."""
