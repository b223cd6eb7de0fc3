"""The result of the analysis pass over one source."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import Track
from components.curate.video.probe import Probe
from components.dataset.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Everything measured about one source; small enough to hold in memory for every source."""

    source: Source
    """The line of sources.jsonl."""
    header: Probe
    """Header of the file."""
    frames: int
    """Number of frames at 24 fps."""
    shots: list[tuple[int, int]]
    """First frame and frame after the last, per shot."""
    tracks: list[Track]
    """People, in order of appearance."""
    track: NDArray[np.int16]
    """Audio, int16 [frames * 1000] at 24 kHz."""
    speech: NDArray[np.float32]
    """Probability of speech per frame, float32 [frames]."""
    loudness: NDArray[np.float32]
    """Loudness per frame in dBFS, float32 [frames]."""
    luminance: NDArray[np.float32]
    """Mean grey value per frame, 0..255, float32 [frames]."""
    change: NDArray[np.float32]
    """Mean absolute change from the previous source frame, 0..255, float32 [frames]; NaN for a duplicate frame."""
    transitions: list[tuple[int, int, str]]
    """First frame, frame after the last and kind (cut or dissolve) of each transition between shots."""
    hashes: NDArray[np.uint64]
    """Perceptual hash of every duplicates.EVERY-th frame, uint64 [hashes]."""
    traces: dict[str, NDArray[np.float32]]
    """Measurements of the streaming scorers, by scorer: float32 [rows, columns]; column 0 is the frame."""
