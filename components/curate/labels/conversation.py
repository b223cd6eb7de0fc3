"""The conversation columns of a clip's manifest row: partner, intervals and the audio offset."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import IntervalConfig
from components.curate.labels.intervals import Interval, find_intervals, runs
from components.curate.labels.pairing import SourceLabels
from components.curate.video.analysis import Analysis
from components.curate.video.faces import Track, once_per_track
from components.dataset.states import SPEAK
from lpm_model.config import VIDEO_FPS


def partner_speaks(track: int, analysis: Analysis, labelled: SourceLabels) -> NDArray[np.bool_]:
    """Return the frames in which the conversation partner of a track speaks, bool [frames of the source]."""
    if labelled.partner is not None:
        return np.asarray(labelled.partner == SPEAK)
    out = np.zeros(analysis.frames, bool)
    partner = labelled.same_shot_partner[track]
    if partner is not None:
        other = analysis.tracks[partner]
        out[other.start : other.stop] = labelled.labels[partner].states == SPEAK
    return out


@once_per_track
def _source_intervals(
    person: Track, track: int, analysis: Analysis, labelled: SourceLabels, config: IntervalConfig
) -> list[Interval]:
    """Find the intervals of a whole source from one person's point of view; each clip uses its part of them."""
    speaks = np.zeros(analysis.frames, bool)
    speaks[person.start : person.stop] = labelled.labels[track].states == SPEAK
    return find_intervals(speaks, partner_speaks(track, analysis, labelled), config)


def offscreen_speech(
    track: int, analysis: Analysis, labelled: SourceLabels, config: IntervalConfig
) -> NDArray[np.bool_]:
    """Return the frames with an off-screen voice that the person does not answer, bool [frames of the source].

    An unseen voice can be a partner behind the camera or a narrator. It counts as a partner if the person speaks within
    `answer_s` before or after it. A person who only ever listens cannot be distinguished from one who is narrated over.
    """
    person = analysis.tracks[track]
    near = np.zeros(analysis.frames, bool)
    reach = round(config.answer_s * VIDEO_FPS)
    for start, stop in runs(labelled.labels[track].states == SPEAK):
        near[max(person.start + start - reach, 0) : person.start + stop + reach] = True
    return np.asarray(labelled.offscreen & ~near)


def conversation_facts(
    track: int, start: int, stop: int, analysis: Analysis, labelled: SourceLabels, config: IntervalConfig
) -> dict[str, Any]:
    """Return the conversation columns for frames start..stop of one person; intervals count from the clip's start."""
    found = _source_intervals(analysis.tracks[track], track, analysis, labelled, config)
    inside = [
        dataclasses.replace(one, start=max(one.start, start) - start, stop=min(one.stop, stop) - start)
        for one in found
        if one.start < stop and one.stop > start
    ]
    partner = labelled.same_shot_partner[track]
    return {
        "partner_person": "" if partner is None else f"{analysis.source.source_id}.p{partner}",
        "intervals": [dataclasses.asdict(one) for one in inside],
        "source_offset_frames": labelled.av_offset.frames,
        "source_offset_confidence": round(labelled.av_offset.confidence, 6),
    }
