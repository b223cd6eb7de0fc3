"""Whether sound and lips belong together."""

import numpy as np

from components.curate.scorers.base import Clip, Scorer, Scores
from lpm_model.config import STATES


class Sync(Scorer):
    """Correlation of mouth and loudness."""

    name, version = "sync", "1"
    columns = ("sync",)

    def score(self, clip: Clip) -> Scores:
        from components.curate.states import sync_score

        loudness = clip.own.loudness[clip.track.start : clip.track.stop]
        whole = sync_score(clip.track.column("gap"), loudness)
        values = whole[clip.start - clip.track.start :][: clip.frames][clip.states == STATES["speak"]]
        return {"sync": float(values.mean()) if len(values) else None}
