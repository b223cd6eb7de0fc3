"""Performance captions: what is said about a clip and its sentences, and the default captioner from measured tracks.

Every field says which model wrote it and from which modality. A field that changes in time never describes a span in
which the person listens: while listening, the sound alone drives reactions.
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
from components.curate.captions.expressions import OPEN_GAP, strengths
from components.curate.captions.motion import motion_terms
from components.curate.captions.prosody import Prosody, prosody
from components.curate.video.faces import FEATURES
from components.dataset.states import DISCARD, IDLE, LISTEN, SPEAK, encode_states
from lpm_model.config import SAMPLES_PER_FRAME

Modality = Literal["video", "audio", "audio+video", "text"]
_MERGED_IDLE = 12
"""Idle runs up to half a second belong to the segment before, the first one to that after it."""
_PAUSE = 8
"""Frames without speech (a third of a second) that end a sentence."""
_SHORTEST = 12
"""Frames of the shortest segment."""
_SHOWN_PERCENT, _NAMED = 50, 1.5
"""An expression is named when half of the frames show it so strongly: talking faces show some in passing."""
_WORDS = {"smile": "smiling", "surprise": "surprise", "sad": "sadness", "frown": "frowning"}
"""Words of the vocabulary for what landmarks tell (expressions.py)."""
_STATES = {SPEAK: "speaking", LISTEN: "listening", IDLE: "idle"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One thing said about a span."""

    value: tuple[str, ...]
    """Words of the vocabulary, in order; or one free text."""
    modality: Modality
    """What the model looked at."""
    model: str
    """Who wrote it."""
    version: str
    """Its version."""


Fields = dict[str, Field]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A sentence, a listening or an idle span."""

    start: int
    """First frame in the clip."""
    stop: int
    """Frame after the last."""
    text: str
    """The caption of this span."""
    fields: Fields
    """What it is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A clip's caption."""

    text: str
    """The caption of the whole clip."""
    fields: Fields
    """What it is made of."""
    segments: tuple[Segment, ...]
    """The clip's spans in order, side by side."""

    def as_json(self) -> str:
        """The manifest's caption_fields."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a captioner gets to see of a clip of T frames."""

    states: NDArray[np.uint8]
    """State track [T]."""
    speech: NDArray[np.float32]
    """Probability of anybody's speech [T]."""
    loudness_db: NDArray[np.float32]
    """Loudness [T]."""
    sound: NDArray[np.int16]
    """The recording's sound, [T * 1000] at 24 kHz."""
    features: NDArray[np.float32]
    """Face features [T, F] by faces.FEATURES."""
    usual: NDArray[np.float32]
    """What the features are as long as the face shows nothing [T, F] (expressions.usual_face)."""
    face_share: float
    """Face height over the height of the clip's pictures."""
    pictures: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))
    """RGB frames [T, H, W, 3]; may be absent."""

    def part(self, start: int, stop: int) -> "Seen":
        """The same of some frames."""
        tracks = ("states", "speech", "loudness_db", "features", "usual", "pictures")
        cut = {name: getattr(self, name)[start:stop] for name in tracks}
        sound = self.sound[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        return dataclasses.replace(self, sound=sound, **cut)


class Captioner(Protocol):
    """Says what is seen and heard in a clip."""

    name: str
    version: str

    def caption(self, seen: Seen) -> Caption:
        """The caption of a clip and of its segments."""
        ...


class MeasuredCaptioner:
    """The default: says what landmarks, head pose and prosody measure; the same clip always gives the same words."""

    name = "measured"
    version = "3"

    def caption(self, seen: Seen) -> Caption:
        """The caption of a clip and of its segments."""
        spans = [(start, stop, measured_fields(seen.part(start, stop))) for start, stop in cut_segments(seen)]
        fields = measured_fields(seen, _longest_shown(seen, spans))
        return Caption(
            text=sentence(fields),
            fields=fields,
            segments=tuple(
                Segment(start=start, stop=stop, text=sentence(said), fields=said) for start, stop, said in spans
            ),
        )


def _longest_shown(seen: Seen, spans: Sequence[tuple[int, int, Fields]]) -> str | None:
    """The expression of most of the frames that may be described, as the segments name it: all captions agree."""
    free, frames = described_frames(seen.states), dict[str, int]()
    for start, stop, said in spans:
        for word in said["expression"].value if "expression" in said else ():
            frames[word] = frames.get(word, 0) + int(free[start:stop].sum())
    return max(frames, key=lambda word: frames[word]) if frames else None


def measured_fields(seen: Seen, face: str | None = None) -> Fields:
    """All fields of a span; what changes in time comes from frames that may be described.

    Args:
        seen: the span.
        face: its expression, where that is known.
    """
    free = described_frames(seen.states)
    fields = {
        "action": _field(_actions(seen.states), "audio+video", "states"),
        "shot": _field([_shot(seen.face_share)], "video", "faces"),
    }
    if not free.any():
        return fields
    face = face or _expression(seen.features[free], seen.usual[free])
    fields["expression"] = _field([face], "video", "landmarks")
    moves = motion_terms(seen.features, seen.usual, free)
    if moves:
        fields["motion"] = _field(moves, "video", "landmarks")
    spoken = seen.states == SPEAK
    heard = prosody(seen.sound, seen.loudness_db, spoken) if spoken.any() else None
    if heard is not None:
        fields |= {name: _field([word], "audio", "prosody") for name, word in _voice(heard).items()}
    emotion = _emotion(face, {name: said.value[0] for name, said in fields.items()})
    fields["emotion"] = _field([emotion], "audio+video" if heard else "video", "landmarks+prosody")
    return fields


def described_frames(states: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Frames of which a caption may say what changes: of a span with listening in it, only those of own speech."""
    return states == SPEAK if np.any(states == LISTEN) else np.ones(len(states), bool)


def sentence(fields: Fields) -> str:
    """The text a model is trained on, from the fields in a fixed order."""
    said = {name: list(item.value) for name, item in fields.items()}
    words = [" and ".join(said["action"])]
    words += [shown for shown in said.get("shot", ())]
    words += [emotion for emotion in said.get("emotion", ()) if emotion != "neutral"]
    words += ["neutral face" if face == "neutral" else face for face in said.get("expression", ())]
    words += said.get("motion", [])
    voice = [said[name][0] for name in ("loudness", "pitch", "melody") if name in said]
    voice = [word for word in voice if word not in ("middle", "even")]
    if voice:
        words.append(f"{' '.join(voice)} voice")
    words += [f"{pace} pace" for pace in said.get("rate", ()) if pace != "measured"]
    words += [text for name in vocabulary.FREE for text in said.get(name, ())]
    return f"A person is {', '.join(dict.fromkeys(words))}."


def cut_segments(seen: Seen) -> list[tuple[int, int]]:
    """Spans of one state each, side by side; a speaking span ends where a sentence does, at a pause."""
    spans: list[list[int]] = []
    at = 0
    for state, frames in encode_states(seen.states):
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
        cuts = _pauses(seen.speech[start:stop]) if state == SPEAK else []
        edges = [start, *(start + cut for cut in cuts), stop]
        found += [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return found


def _pauses(speech: NDArray[np.float32]) -> list[int]:
    """Middles of the pauses in a speaking span that leave a segment on either side."""
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


def _shot(face_share: float) -> str:
    """By the share of the picture's height that the face fills."""
    edges = (0.70, 0.42, 0.28, 0.15)
    return vocabulary.SHOTS[sum(face_share < edge for edge in edges)]


def _expression(features: NDArray[np.float32], usual: NDArray[np.float32]) -> str:
    """The base expression that the landmarks can tell, from how far the face goes from its usual form."""
    shown = strengths(features, usual)
    if np.all(np.isnan(shown["smile"])):
        return "neutral"
    level = {name: float(np.nanpercentile(shown[name], _SHOWN_PERCENT)) for name in _WORDS}
    best = max(level, key=lambda name: level[name])
    if level[best] < _NAMED:
        return "neutral"
    gap = features[:, FEATURES.index("gap")]
    if best == "smile" and float(np.nanmedian(gap[shown["smile"] >= 1.0])) > OPEN_GAP:
        return "laughing"
    return _WORDS[best]


def _voice(heard: Prosody) -> dict[str, str]:
    """Words for a voice; a measure that could not be taken is left out."""
    said = {"loudness": _level("loudness", heard.loudness_db, (-32.0, -16.0))}
    if not math.isnan(heard.pitch_hz):
        said["pitch"] = _level("pitch", heard.pitch_hz, (120.0, 200.0))
    if not math.isnan(heard.pitch_spread):
        said["melody"] = _level("melody", heard.pitch_spread, (3.0, 9.0))
    said["rate"] = _level("rate", heard.syllables_per_s, (2.5, 5.0))
    return said


def _level(name: str, value: float, edges: tuple[float, float]) -> str:
    return vocabulary.LEVELS[name][sum(value > edge for edge in edges)]


def _emotion(face: str, said: dict[str, str]) -> str:
    """The emotion that face and voice together suggest; neutral where they suggest none."""
    lively = said.get("loudness") == "loud" or said.get("melody") == "lively"
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
    if said.get("loudness") == "loud" and said.get("rate") == "fast":
        return "excitement"
    if said.get("loudness") == "soft" and said.get("rate") == "slow":
        return "calm"
    return "neutral"
