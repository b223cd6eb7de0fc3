"""Captions from measured tracks; every field says from which modality and which measure it comes."""

import numpy as np
from numpy.typing import NDArray

from components.curate.manifest import DISCARD, IDLE, LISTEN, SPEAK, encode_states

_SMILE = 0.035
_NOD_RAD = 0.06
_LIVELY_DEG = 3.0
_CALM_DEG = 0.8

Field = dict[str, str]


def caption_fields(
    states: NDArray[np.uint8],
    smile: NDArray[np.float32],
    resting_smile: float,
    pitch: NDArray[np.float32],
    head_motion_deg: float,
    loudness_db: NDArray[np.float32],
) -> dict[str, Field]:
    """What can be said about a clip, each field with value, modality and scorer.

    Args:
        states: state track uint8 [T].
        smile: smile measure [T] in eye distances.
        resting_smile: the person's usual value.
        pitch: head pitch [T] in radians.
        head_motion_deg: spread of the head angles.
        loudness_db: loudness of the clip's sound [T].
    """
    spoken = loudness_db[states == SPEAK]
    fields = {
        "action": {"value": _action(states), "modality": "audio+video", "scorer": "states"},
        "expression": {"value": _expression(smile, resting_smile), "modality": "video", "scorer": "landmarks.smile"},
        "head": {"value": _head(pitch, head_motion_deg), "modality": "video", "scorer": "landmarks.pose"},
    }
    if len(spoken):
        fields["voice"] = {"value": _voice(spoken), "modality": "audio", "scorer": "loudness"}
    return fields


def caption(fields: dict[str, Field]) -> str:
    """The sentence a model is trained on.

    A listener's caption says only what holds over the whole clip: while listening the sound alone drives reactions.
    """
    words = [fields["action"]["value"], fields["expression"]["value"]]
    if fields["action"]["value"] != "listening":
        words.append(fields["head"]["value"])
        if "voice" in fields:
            words.append(fields["voice"]["value"])
    return f"A person is {', '.join(words)}."


def _action(states: NDArray[np.uint8]) -> str:
    names = {IDLE: "idle", SPEAK: "speaking", LISTEN: "listening"}
    runs = [state for state, frames in encode_states(states) if state != DISCARD and (state != IDLE or frames > 18)]
    order = list(dict.fromkeys(runs)) or [IDLE]
    spoken = [state for state in order if state != IDLE] or [IDLE]
    return " and ".join(names[state] for state in spoken)


def _expression(smile: NDArray[np.float32], resting: float) -> str:
    return "smiling" if float(np.nanpercentile(smile, 80)) - resting > _SMILE else "neutral face"


def _head(pitch: NDArray[np.float32], head_motion_deg: float) -> str:
    if _nods(pitch) >= 2:
        return "nodding"
    if head_motion_deg > _LIVELY_DEG:
        return "lively head"
    return "still head" if head_motion_deg < _CALM_DEG else "slightly moving head"


def _nods(pitch: NDArray[np.float32]) -> int:
    """Downward swings of the head that come back within a second."""
    known = np.nan_to_num(pitch, nan=float(np.nanmedian(pitch)))
    trend = np.convolve(np.pad(known, 12, mode="edge"), np.ones(25) / 25, mode="valid")
    down = (known - trend) > _NOD_RAD / 2
    return int(np.sum(np.diff(down.astype(np.int8)) == 1))


def _voice(spoken_db: NDArray[np.float32]) -> str:
    level = float(np.percentile(spoken_db, 75))
    return "loud voice" if level > -16 else "soft voice" if level < -32 else "calm voice"
