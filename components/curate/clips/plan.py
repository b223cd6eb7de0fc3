"""Plan the clips of a source: windows of every person, with their crops and the candidates of their references."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.clips.references import Choice, choose_references, nearby_tracks, rank_frames
from components.curate.clips.windows import cut_windows
from components.curate.config import CurationConfig
from components.curate.labels.pairing import SourceLabels
from components.curate.scorers.audio import music_ratio
from components.curate.video.analysis import Analysis
from components.curate.video.crops import Crop, others_in, plan_crop
from components.curate.video.faces import Track
from components.dataset.states import DISCARD
from lpm_model.config import SAMPLES_PER_FRAME


@dataclass(kw_only=True, slots=True)
class Plan:
    """One clip: its location in the source, and its state during processing."""

    clip_id: str
    """Unique name of the clip."""
    track: int
    """Number of the person's track in the source."""
    start: int
    """First frame in the source."""
    frames: int
    """Length, 4k+1."""
    crop: Crop
    """Square that is cut out of every frame."""
    choices: list[Choice]
    """Kinds of references and their candidate frames."""
    row: dict[str, Any] = field(default_factory=dict)
    """Manifest row, once the clip is cut."""
    accepted: bool = False
    """Whether it passed every threshold and therefore gets references."""

    @property
    def stop(self) -> int:
        """Frame after the last."""
        return self.start + self.frames

    def within(self, track: Track) -> slice:
        """Return the clip's frames in its person's track."""
        return slice(self.start - track.start, self.stop - track.start)


def clip_key(source_id: str, track: int, start: int) -> str:
    """Return the name of a clip, without dots: the first dot of a tar member starts its extension."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', source_id)}-t{track:02d}-{start:06d}"


def plan_clips(
    analysis: Analysis, labelled: SourceLabels, config: CurationConfig, crops: "Crops"
) -> tuple[list[Plan], dict[str, int], dict[str, int]]:
    """Return the clips of a source, and the people and person-frames without one, counted by reason."""
    plans: list[Plan] = []
    track_reasons: dict[str, int] = {}
    frame_reasons = {"no_face": 0, "discarded_state": 0, "remainder": 0}
    rankings = [
        rank_frames(number, track, labels.states)
        for number, (track, labels) in enumerate(zip(analysis.tracks, labelled.labels, strict=True))
    ]
    for index, (track, labels) in enumerate(zip(analysis.tracks, labelled.labels, strict=True)):
        usable = track.seen & (labels.states != DISCARD)
        windows = cut_windows(usable, analysis.speech[track.start : track.stop], config)
        covered = np.zeros(len(usable), bool)
        other_shots = [rankings[other] for other in nearby_tracks(analysis.tracks, index)]
        for first, frames in windows:
            covered[first : first + frames] = True
            start = track.start + first
            plans.append(
                Plan(
                    clip_id=clip_key(analysis.source.source_id, index, start),
                    track=index,
                    start=start,
                    frames=frames,
                    crop=crops.for_span(index, start, start + frames),
                    choices=choose_references(rankings[index], other_shots, start, frames, config),
                )
            )
        frame_reasons["no_face"] += int((~track.seen).sum())
        frame_reasons["discarded_state"] += int((track.seen & (labels.states == DISCARD)).sum())
        frame_reasons["remainder"] += int((usable & ~covered).sum())
        if not windows:
            reason = _no_clip_reason(
                analysis, track, labels.states, config.clip_frames[0], config.active_thresholds.max_music_ratio
            )
            track_reasons[reason] = track_reasons.get(reason, 0) + 1
    return plans, track_reasons, frame_reasons


def _no_clip_reason(
    analysis: Analysis, track: Track, states: NDArray[np.uint8], min_frames: int, max_music_ratio: float | None
) -> str:
    """Return why a person has no clip of at least `min_frames` frames."""
    start, stop = analysis.shots[track.shot]
    if stop - start < min_frames:
        edges = {kind for first, last, kind in analysis.transitions if last == start or first == stop}
        return f"shot_ends_by_{'dissolve' if 'dissolve' in edges else 'cut'}" if edges else "too_short"
    if (states[track.seen] == DISCARD).mean() > 0.3:
        span = slice(track.start, track.stop)
        audio = analysis.track[track.start * SAMPLES_PER_FRAME : track.stop * SAMPLES_PER_FRAME]
        if max_music_ratio is not None and music_ratio(audio, analysis.loudness[span]) > max_music_ratio:
            return "music_ratio_above_max"  # music was mistaken for speech
        return "sound_contradicts_mouth"
    return "too_short" if len(states) < min_frames else "no_usable_span"


class Crops:
    """The crops of a source's people; each person's default crop is computed once."""

    def __init__(self, analysis: Analysis, config: CurationConfig) -> None:
        self._analysis, self._config = analysis, config
        self._size = (analysis.header.width_px, analysis.header.height_px)
        self._default: dict[int, Crop] = {}

    def for_span(self, index: int, start: int, stop: int) -> Crop:
        """Return the person's default crop if the head stays inside it, otherwise one for this span."""
        track = self._analysis.tracks[index]
        if index not in self._default:
            self._default[index] = self._plan_for_span(index, track.start, track.stop)
        if self._default[index].holds(rows_of(track, start, stop)[:, :4]).mean() >= 0.98:
            return self._default[index]
        return self._plan_for_span(index, start, stop)

    def _plan_for_span(self, index: int, start: int, stop: int) -> Crop:
        boxes = rows_of(self._analysis.tracks[index], start, stop)[:, :4]
        return plan_crop(boxes, others_in(self._analysis.tracks, index, start, stop), self._size, self._config)


def rows_of(track: Track, start: int, stop: int) -> NDArray[np.float32]:
    """Return the features of frames start..stop of the source, float32 [frames, F]."""
    return track.values[start - track.start : stop - track.start]
