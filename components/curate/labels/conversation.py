"""What the manifest says about a clip's conversation: partner, intervals, the sound's offset."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import IntervalConfig
from components.curate.labels.intervals import Interval, find_intervals, runs
from components.curate.labels.pairing import Labelled
from components.curate.video.analysis import Analysis
from components.curate.video.faces import Track, once_a_track
from components.dataset.states import SPEAK
from lpm_model.config import VIDEO_FPS


def partner_speaks(track: int, own: Analysis, labelled: Labelled) -> NDArray[np.bool_]:
    """Where the person whom a track's person talks with speaks, bool [frames of the source]."""
    if labelled.partner is not None:
        return np.asarray(labelled.partner == SPEAK)
    out = np.zeros(own.frames, bool)
    beside = labelled.beside[track]
    if beside is not None:
        other = own.tracks[beside]
        out[other.start : other.stop] = labelled.labels[beside].states == SPEAK
    return out


@once_a_track
def _whole_intervals(
    person: Track, track: int, own: Analysis, labelled: Labelled, config: IntervalConfig
) -> list[Interval]:
    """Intervals of the whole source as one of its people sees them: a clip shows its part of what they decide."""
    speaks = np.zeros(own.frames, bool)
    speaks[person.start : person.stop] = labelled.labels[track].states == SPEAK
    return find_intervals(speaks, partner_speaks(track, own, labelled), config)


def strange_voice(track: int, own: Analysis, labelled: Labelled, config: IntervalConfig) -> NDArray[np.bool_]:
    """Where a voice off the scene is heard with which the person does not talk, bool [frames of the source].

    Whom nobody sees may be a partner behind the camera or a narrator; what tells them apart here is whether the person
    has words of their own within `answer_s` before or after. One who only ever listens cannot be told from one who is
    talked over.
    """
    person = own.tracks[track]
    near = np.zeros(own.frames, bool)
    reach = round(config.answer_s * VIDEO_FPS)
    for start, stop in runs(labelled.labels[track].states == SPEAK):
        near[max(person.start + start - reach, 0) : person.start + stop + reach] = True
    return np.asarray(labelled.offscreen & ~near)


def conversation_facts(
    track: int, start: int, stop: int, own: Analysis, labelled: Labelled, config: IntervalConfig
) -> dict[str, Any]:
    """Columns of the conversation stage for frames start..stop of one person; intervals count from the clip."""
    found = _whole_intervals(own.tracks[track], track, own, labelled, config)
    inside = [
        dataclasses.replace(one, start=max(one.start, start) - start, stop=min(one.stop, stop) - start)
        for one in found
        if one.start < stop and one.stop > start
    ]
    beside = labelled.beside[track]
    return {
        "partner_person": "" if beside is None else f"{own.source.source_id}.p{beside}",
        "intervals": [dataclasses.asdict(one) for one in inside],
        "source_offset_frames": labelled.av_offset.frames,
        "source_offset_confidence": round(labelled.av_offset.confidence, 6),
    }
