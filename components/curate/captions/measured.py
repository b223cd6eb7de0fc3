"""Performance captions of clips and their segments, and the default captioner, which works from measured tracks.

Every field records the model that wrote it and the modality it used. A time-varying field never describes a span in
which the person listens, because reactions while listening are driven by the audio alone.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from components.curate.captions import vocabulary
from components.curate.captions.expressions import OPEN_GAP, expression_strengths
from components.curate.captions.motion import motion_terms
from components.curate.captions.prosody import Prosody, prosody
from components.curate.video.faces import FEATURES
from components.dataset.states import DISCARD, IDLE, LISTEN, SPEAK, encode_states
from lpm_model.config import SAMPLES_PER_FRAME

Modality = Literal["video", "audio", "audio+video", "text"]
_MERGED_IDLE = 12
"""Idle runs of up to half a second join the previous segment, the first one the next segment."""
_PAUSE = 8
"""Frames without speech (a third of a second) that end a sentence."""
_SHORTEST = 12
"""Shortest segment in frames."""
_PERCENTILE, _MIN_STRENGTH = 50, 1.5
"""An expression is named if this percentile of its strength is high enough: talking faces show some in passing."""
_WORDS = {"smile": "smiling", "surprise": "surprise", "sad": "sadness", "frown": "frowning"}
"""Vocabulary words for the measured expressions (expressions.py)."""
_STATES = {SPEAK: "speaking", LISTEN: "listening", IDLE: "idle"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One statement about a span."""

    value: tuple[str, ...]
    """Vocabulary words in order, or one free text."""
    modality: Modality
    """Modality the model used."""
    model: str
    """Name of the model."""
    version: str
    """Version of the model."""


Fields = dict[str, Field]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A spoken sentence, a listening span or an idle span."""

    start: int
    """First frame in the clip."""
    stop: int
    """Frame after the last."""
    text: str
    """Caption of the span."""
    fields: Fields
    """Statements that the caption is composed of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A clip's caption."""

    text: str
    """Caption of the whole clip."""
    fields: Fields
    """Statements that the caption is composed of."""
    segments: tuple[Segment, ...]
    """Contiguous spans of the clip, in order."""

    def as_json(self) -> str:
        """Serialise for the manifest column caption_fields."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionInput:
    """The input of a captioner: the tracks and frames of a clip of T frames."""

    states: NDArray[np.uint8]
    """State track, uint8 [T]."""
    speech: NDArray[np.float32]
    """Probability of anybody's speech, float32 [T]."""
    loudness_db: NDArray[np.float32]
    """Loudness in dBFS, float32 [T]."""
    audio: NDArray[np.int16]
    """Audio of the recording, int16 [T * 1000] at 24 kHz."""
    features: NDArray[np.float32]
    """Face features, float32 [T, F], columns as in faces.FEATURES."""
    neutral: NDArray[np.float32]
    """Features of the neutral face, float32 [T, F] (expressions.neutral_face)."""
    face_ratio: float
    """Face height over frame height."""
    rgb: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """RGB frames [T, H, W, 3]; may be empty."""

    def span(self, start: int, stop: int) -> "CaptionInput":
        """Return the input restricted to frames start..stop."""
        tracks = ("states", "speech", "loudness_db", "features", "neutral", "rgb")
        tracks_of_span = {name: getattr(self, name)[start:stop] for name in tracks}
        audio = self.audio[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        return dataclasses.replace(self, audio=audio, **tracks_of_span)


class Captioner(Protocol):
    """Captions clips."""

    name: str
    version: str

    def caption(self, clip: CaptionInput) -> Caption:
        """Caption a clip and its segments."""
        ...


class MeasuredCaptioner:
    """The default captioner: describes landmarks, head pose and prosody; deterministic."""

    name = "measured"
    version = "3"

    def caption(self, clip: CaptionInput) -> Caption:
        """Caption a clip and its segments."""
        spans = [(start, stop, measured_fields(clip.span(start, stop))) for start, stop in cut_segments(clip)]
        fields = measured_fields(clip, _dominant_expression(clip, spans))
        return Caption(
            text=sentence(fields),
            fields=fields,
            segments=tuple(
                Segment(start=start, stop=stop, text=sentence(stated), fields=stated) for start, stop, stated in spans
            ),
        )


def _dominant_expression(clip: CaptionInput, spans: Sequence[tuple[int, int, Fields]]) -> str | None:
    """Return the segments' expression with the most describable frames, to keep clip and segments consistent."""
    free, frames = describable_frames(clip.states), dict[str, int]()
    for start, stop, stated in spans:
        for word in stated["expression"].value if "expression" in stated else ():
            frames[word] = frames.get(word, 0) + int(free[start:stop].sum())
    return max(frames, key=lambda word: frames[word]) if frames else None


def measured_fields(clip: CaptionInput, face: str | None = None) -> Fields:
    """Return all fields of a span; time-varying fields use only describable frames.

    Args:
        clip: the span.
        face: its expression if known.
    """
    free = describable_frames(clip.states)
    fields = {
        "action": _field(_actions(clip.states), "audio+video", "states"),
        "shot": _field([_shot(clip.face_ratio)], "video", "faces"),
    }
    if not free.any():
        return fields
    face = face or _expression(clip.features[free], clip.neutral[free])
    fields["expression"] = _field([face], "video", "landmarks")
    moves = motion_terms(clip.features, clip.neutral, free)
    if moves:
        fields["motion"] = _field(moves, "video", "landmarks")
    spoken = clip.states == SPEAK
    voice = prosody(clip.audio, clip.loudness_db, spoken) if spoken.any() else None
    if voice is not None:
        fields |= {name: _field([word], "audio", "prosody") for name, word in _voice(voice).items()}
    emotion = _emotion(face, {name: stated.value[0] for name, stated in fields.items()})
    fields["emotion"] = _field([emotion], "audio+video" if voice else "video", "landmarks+prosody")
    return fields


def describable_frames(states: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the frames whose time-varying content may be captioned: only own speech if there is any listening."""
    return states == SPEAK if np.any(states == LISTEN) else np.ones(len(states), bool)


def sentence(fields: Fields) -> str:
    """Compose the caption text that a model is trained on, from the fields in a fixed order."""
    stated = {name: list(item.value) for name, item in fields.items()}
    words = [" and ".join(stated["action"])]
    words += stated.get("shot", [])
    words += [emotion for emotion in stated.get("emotion", ()) if emotion != "neutral"]
    words += ["neutral face" if face == "neutral" else face for face in stated.get("expression", ())]
    words += stated.get("motion", [])
    voice = [stated[name][0] for name in ("loudness", "pitch", "melody") if name in stated]
    voice = [word for word in voice if word not in ("middle", "even")]
    if voice:
        words.append(f"{' '.join(voice)} voice")
    words += [f"{pace} pace" for pace in stated.get("rate", ()) if pace != "measured"]
    words += [text for name in vocabulary.FREE for text in stated.get(name, ())]
    return f"A person is {', '.join(dict.fromkeys(words))}."


def cut_segments(clip: CaptionInput) -> list[tuple[int, int]]:
    """Cut a clip into contiguous spans of one state; speaking spans are split into sentences at pauses."""
    spans: list[list[int]] = []
    at = 0
    for state, frames in encode_states(clip.states):
        if spans and (state in (spans[-1][2], DISCARD) or (state == IDLE and frames <= _MERGED_IDLE)):
            spans[-1][1] += frames
        else:
            spans.append([at, at + frames, state])
        at += frames
    if len(spans) > 1 and spans[0][2] == IDLE and spans[0][1] <= _MERGED_IDLE:
        del spans[0]
        spans[0][0] = 0
    found: list[tuple[int, int]] = []
    for start, stop, state in spans:
        cuts = _pauses(clip.speech[start:stop]) if state == SPEAK else []
        edges = [start, *(start + cut for cut in cuts), stop]
        found += [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return found


def _pauses(speech: NDArray[np.float32]) -> list[int]:
    """Return the centres of the pauses in a speaking span that leave a segment on either side."""
    quiet = np.concatenate([[0], (speech < 0.5).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(quiet))
    cuts: list[int] = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        middle = int(start + stop) // 2
        last = cuts[-1] if cuts else 0
        if stop - start >= _PAUSE and middle - last >= _SHORTEST and len(speech) - middle >= _SHORTEST:
            cuts.append(middle)
    return cuts


def _field(value: Sequence[str], modality: Modality, measure: str) -> Field:
    return Field(value=tuple(value), modality=modality, model=measure, version=MeasuredCaptioner.version)


def _actions(states: NDArray[np.uint8]) -> list[str]:
    runs = [state for state, frames in encode_states(states) if state != DISCARD and (state != IDLE or frames > 18)]
    order = list(dict.fromkeys(runs)) or [IDLE]
    return [_STATES[state] for state in order if state != IDLE] or [_STATES[IDLE]]


def _shot(face_ratio: float) -> str:
    """Return the shot type for a ratio of face height to frame height."""
    edges = (0.70, 0.42, 0.28, 0.15)
    return vocabulary.SHOTS[sum(face_ratio < edge for edge in edges)]


def _expression(features: NDArray[np.float32], neutral: NDArray[np.float32]) -> str:
    """Return the base expression from the deviation of the landmarks from the neutral face."""
    strength = expression_strengths(features, neutral)
    if np.all(np.isnan(strength["smile"])):
        return "neutral"
    level = {name: float(np.nanpercentile(strength[name], _PERCENTILE)) for name in _WORDS}
    best = max(level, key=lambda name: level[name])
    if level[best] < _MIN_STRENGTH:
        return "neutral"
    gap = features[:, FEATURES.index("gap")]
    if best == "smile" and float(np.nanmedian(gap[strength["smile"] >= 1.0])) > OPEN_GAP:
        return "laughing"
    return _WORDS[best]


def _voice(voice: Prosody) -> dict[str, str]:
    """Return the words for a voice; measurements that are NaN are skipped."""
    words = {"loudness": _level("loudness", voice.loudness_db, (-32.0, -16.0))}
    if not math.isnan(voice.pitch_hz):
        words["pitch"] = _level("pitch", voice.pitch_hz, (120.0, 200.0))
    if not math.isnan(voice.pitch_spread):
        words["melody"] = _level("melody", voice.pitch_spread, (3.0, 9.0))
    words["rate"] = _level("rate", voice.syllables_per_s, (2.5, 5.0))
    return words


def _level(name: str, value: float, edges: tuple[float, float]) -> str:
    return vocabulary.LEVELS[name][sum(value > edge for edge in edges)]


def _emotion(face: str, words: dict[str, str]) -> str:
    """Return the emotion that face and voice together suggest, neutral without any."""
    lively = words.get("loudness") == "loud" or words.get("melody") == "lively"
    if face == "laughing":
        return "amusement"
    if face == "smiling":
        return "joy" if lively else "happiness"
    if face == "surprise":
        return "surprise"
    if face == "frowning":
        return "anger" if lively else "annoyance"
    if face == "sadness":
        return "sadness"
    if words.get("loudness") == "loud" and words.get("rate") == "fast":
        return "excitement"
    if words.get("loudness") == "soft" and words.get("rate") == "slow":
        return "calm"
    return "neutral"
