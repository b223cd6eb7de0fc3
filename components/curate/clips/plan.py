"""Which clips a source gives: windows of every person with their crops and the frames of their references."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.clips.references import Choice, choose_references, nearby, rank
from components.curate.clips.windows import cut_windows
from components.curate.config import CurationConfig
from components.curate.labels.pairing import Labelled
from components.curate.scorers.sound import music_ratio
from components.curate.video.analysis import Analysis
from components.curate.video.crops import Crop, others_in, plan_crop
from components.curate.video.faces import Track
from components.dataset.states import DISCARD
from lpm_model.config import SAMPLES_PER_FRAME


@dataclass(kw_only=True, slots=True)
class Plan:
    """One candidate clip on its way through the second pass."""

    clip_id: str
    """Name of the clip."""
    track: int
    """Number of the person's track in the source."""
    start: int
    """First frame in the source."""
    frames: int
    """Length, 4k+1."""
    crop: Crop
    """The square that is cut out."""
    choices: list[Choice]
    """References and the frames they may come from."""
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    """Frames cut so far."""
    row: dict[str, Any] = field(default_factory=dict)
    """Manifest row, once the clip is complete."""
    waits: bool = False
    """Whether it passed and waits for its references."""

    @property
    def stop(self) -> int:
        """Frame after the last."""
        return self.start + self.frames

    def within(self, track: Track) -> slice:
        """The clip's frames in its person's track."""
        return slice(self.start - track.start, self.stop - track.start)


def clip_key(source_id: str, track: int, start: int) -> str:
    """Name of a clip; tar members may hold no dot before their extension."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', source_id)}-t{track:02d}-{start:06d}"


def plan_clips(
    own: Analysis, labelled: Labelled, config: CurationConfig, crops: "Crops"
) -> tuple[list[Plan], dict[str, int], dict[str, int]]:
    """Windows with their crops and reference candidates; and why people and frames gave none."""
    plans: list[Plan] = []
    track_reasons: dict[str, int] = {}
    frame_reasons = {"no_face": 0, "discarded_state": 0, "remainder": 0}
    rankings = [
        rank(number, track, labels.states)
        for number, (track, labels) in enumerate(zip(own.tracks, labelled.labels, strict=True))
    ]
    for index, (track, labels) in enumerate(zip(own.tracks, labelled.labels, strict=True)):
        usable = track.seen & (labels.states != DISCARD)
        windows = cut_windows(usable, own.speech[track.start : track.stop], config)
        covered = np.zeros(len(usable), bool)
        elsewhere = [rankings[other] for other in nearby(own.tracks, index)]
        for at, frames in windows:
            covered[at : at + frames] = True
            start = track.start + at
            plans.append(
                Plan(
                    clip_id=clip_key(own.source.source_id, index, start),
                    track=index,
                    start=start,
                    frames=frames,
                    crop=crops.of(index, start, start + frames),
                    choices=choose_references(rankings[index], elsewhere, start, frames, config),
                )
            )
        frame_reasons["no_face"] += int((~track.seen).sum())
        frame_reasons["discarded_state"] += int((track.seen & (labels.states == DISCARD)).sum())
        frame_reasons["remainder"] += int((usable & ~covered).sum())
        if not windows:
            reason = _why_none(
                own, track, labels.states, config.clip_frames[0], config.active_thresholds.max_music_ratio
            )
            track_reasons[reason] = track_reasons.get(reason, 0) + 1
    return plans, track_reasons, frame_reasons


def _why_none(own: Analysis, track: Track, states: NDArray[np.uint8], shortest: int, limit: float | None) -> str:
    """Why a person gives no clip of `shortest` frames; `limit` is the largest share of music."""
    start, stop = own.shots[track.shot]
    if stop - start < shortest:
        edges = {kind for first, last, kind in own.transitions if last == start or first == stop}
        return f"shot_ends_by_{'dissolve' if 'dissolve' in edges else 'cut'}" if edges else "too_short"
    if (states[track.seen] == DISCARD).mean() > 0.3:
        span = slice(track.start, track.stop)
        sound = own.track[track.start * SAMPLES_PER_FRAME : track.stop * SAMPLES_PER_FRAME]
        if limit is not None and music_ratio(sound, own.loudness[span]) > limit:
            return "music_ratio_above_max"  # what sounds like a voice is none
        return "sound_contradicts_mouth"
    return "too_short" if len(states) < shortest else "no_usable_span"


class Crops:
    """The crops of a source's people; the usual one of each is found once."""

    def __init__(self, own: Analysis, config: CurationConfig) -> None:
        self._own, self._config = own, config
        self._size = (own.header.width_px, own.header.height_px)
        self._usual: dict[int, Crop] = {}

    def of(self, index: int, start: int, stop: int) -> Crop:
        """The person's usual crop where the head stays inside it, else one for this span."""
        track = self._own.tracks[index]
        if index not in self._usual:
            self._usual[index] = self._planned(index, track.start, track.stop)
        if self._usual[index].holds(rows_of(track, start, stop)[:, :4]).mean() >= 0.98:
            return self._usual[index]
        return self._planned(index, start, stop)

    def _planned(self, index: int, start: int, stop: int) -> Crop:
        boxes = rows_of(self._own.tracks[index], start, stop)[:, :4]
        return plan_crop(boxes, others_in(self._own.tracks, index, start, stop), self._size, self._config)


def rows_of(track: Track, start: int, stop: int) -> NDArray[np.float32]:
    return track.values[start - track.start : stop - track.start]
