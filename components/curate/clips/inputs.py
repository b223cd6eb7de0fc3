"""The inputs for making the clips of one source."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.measured import Captioner
from components.curate.clips.encode import LatentEncoder
from components.curate.config import CurationConfig
from components.curate.labels.pairing import SourceLabels
from components.curate.scorers.base import Scorer
from components.curate.video.analysis import Analysis
from components.curate.video.roi_cache import RoiCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One source, its analysis and labels, and the networks that its clips need."""

    raw: Path
    """Corpus folder."""
    analysis: Analysis
    """Analysis of the source."""
    labelled: SourceLabels
    """States of its people."""
    partner: Analysis | None
    """Analysis of the partner's camera, where it could be aligned."""
    config: CurationConfig
    """Settings."""
    encoder: LatentEncoder
    """Autoencoder: RGB to latents."""
    captioner: Captioner
    """Writes the captions of kept clips."""
    scorers: tuple[Scorer, ...]
    """Measure the clips."""
    roi_cache: RoiCache
    """Regions of frames that the analysis pass cached."""
    copied: NDArray[np.bool_]
    """Frames of the source that duplicate an earlier source, bool [frames]."""
