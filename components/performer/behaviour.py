"""Motion of one person: speech, and reactions to the partner's audio.

Causal rules, most visible first (delays are counted from the audio that causes them):
  nod      0.36-0.44 s after the partner pauses (>= 0.2 s) at the end of a phrase of >= 0.8 s; deeper if it was louder,
           two beats after a phrase of >= 2.5 s; not during own speech
  smile    follows the partner's loudness and raised pitch, 0.25 s late
  brows    rise 0.3 s after the partner stresses a word, by loudness or pitch
  tilt     the head tilts slowly to one side while the partner keeps speaking
  blink    soon after either person's phrase ends, and every 2 to 6 s
Little is random (sway, blink times, glances): the rest can be learned from audio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer.phones import Phone
from components.performer.tracks import ARKIT_INDEX, Tracks
from components.performer.visemes import mouth_curves
from components.performer.voice_cues import Phrase, VoiceCues, delay, measure_cues, smooth
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS

IDLE: Final = 0
SPEAK: Final = 1
LISTEN: Final = 2

NOD_AFTER_SPEECH_S: Final = 0.8
"""Shortest phrase that is answered by a nod."""
_TWO_BEATS_S: Final = 2.5
_BEAT_FRAMES: Final = 11
_USUAL_LEVEL: Final = 0.08  # RMS of the voices at ordinary loudness
_BRIDGE_S: Final = 0.35  # shorter silences inside own speech count as speaking
_BACKCHANNEL_S: Final = 0.9  # shorter speech during the partner's turn is a backchannel

EMOTIONS: Final[dict[str, dict[str, float]]] = {
    "neutral": {},
    "happy": {"mouthSmile_L": 0.35, "mouthSmile_R": 0.35, "cheekSquint_L": 0.3, "cheekSquint_R": 0.3},
    "sad": {"browInnerUp": 0.5, "mouthFrown_L": 0.35, "mouthFrown_R": 0.35, "eyeSquint_L": 0.1, "eyeSquint_R": 0.1},
    "surprised": {
        "browInnerUp": 0.5, "browOuterUp_L": 0.5, "browOuterUp_R": 0.5, "eyeWide_L": 0.4, "eyeWide_R": 0.4
    },
    "angry": {
        "browDown_L": 0.6, "browDown_R": 0.6, "eyeSquint_L": 0.25, "eyeSquint_R": 0.25,
        "noseSneer_L": 0.2, "noseSneer_R": 0.2,
    },
    "thoughtful": {"browDown_L": 0.25, "browInnerUp": 0.2, "eyeSquint_L": 0.15, "eyeSquint_R": 0.15},
}  # fmt: skip
"""Blendshape weights that each emotion adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Animation:
    """Motion of one person over T frames, and its ground truth."""

    tracks: Tracks
    """Motion to render."""
    state: NDArray[np.uint8]
    """[T] IDLE, SPEAK or LISTEN."""
    nod: NDArray[np.uint8]
    """[T] 1 during a nod."""
    smile: NDArray[np.float32]
    """[T] strength of the smile that the partner's audio causes."""
    backchannels: tuple[tuple[int, int], ...]
    """Frame spans (start, end) of own backchannels during the partner's turn."""


def animate(
    own_pcm: NDArray[np.int16],
    own_phones: Sequence[Phone],
    partner_pcm: NDArray[np.int16],
    emotion: str | Sequence[str],
    seed: int,
    frames: int,
) -> Animation:
    """Animate one side of a conversation.

    Args:
        own_pcm: int16 [samples] at 24 kHz, the person's own speech alone.
        own_phones: its phones, timed on `own_pcm`.
        partner_pcm: int16 [samples] at 24 kHz, the partner's speech alone.
        emotion: one of EMOTIONS, or one per frame.
        seed: seed of personal habits and randomness.
        frames: T; frame f shows the time of sample 1000 f.

    Raises:
        ValueError: an unknown emotion, or a list of another length than `frames`.
    """
    own, other = measure_cues(own_pcm, frames), measure_cues(partner_pcm, frames)
    speaking = _speaking(own_phones, frames)
    listening_weight = 1.0 - smooth(speaking, 0.15)
    shapes = mouth_curves(own_phones, own_pcm, frames)
    rotation = np.zeros((frames, 3), np.float32)
    translation = np.zeros((frames, 3), np.float32)
    habits = np.random.default_rng([seed, 1])
    backchannels = _backchannels(own, other)
    beats = _nods(own, other, backchannels, speaking, habits)
    nod = _add_nods(rotation, beats, frames)
    smile = _smile_reaction(other, float(habits.uniform(0.85, 1.15))) * listening_weight
    for side in "LR":
        shapes[:, ARKIT_INDEX[f"mouthSmile_{side}"]] += smile
        shapes[:, ARKIT_INDEX[f"cheekSquint_{side}"]] += 0.6 * smile
    _raise_brows(shapes, own, other, speaking, listening_weight)
    _move_head(rotation, translation, own, other, speaking, listening_weight, np.random.default_rng([seed, 2]))
    _add_emotion(shapes, emotion)
    _add_blinks(shapes, own.phrases + other.phrases, np.random.default_rng([seed, 3]))
    return Animation(
        tracks=Tracks(
            blendshapes=np.clip(shapes, 0.0, 1.0),
            rotation=rotation,
            translation=translation,
            gaze=_gaze_track(own, frames, np.random.default_rng([seed, 4])),
        ),
        state=_states(speaking, other),
        nod=nod,
        smile=smile,
        backchannels=backchannels,
    )


def _speaking(phones: Sequence[Phone], frames: int) -> NDArray[np.float32]:
    """Return 1 where the person speaks, short silences included, float32 [T]."""
    speaking = np.zeros(frames, np.float32)
    previous = None
    for phone in phones:
        start = -(-phone.start_sample // SAMPLES_PER_FRAME)
        if previous is not None and phone.start_sample - previous <= _BRIDGE_S * VIDEO_FPS * SAMPLES_PER_FRAME:
            start = previous // SAMPLES_PER_FRAME
        speaking[start : phone.end_sample // SAMPLES_PER_FRAME + 1] = 1.0
        previous = phone.end_sample
    return speaking


def _states(speaking: NDArray[np.float32], other: VoiceCues) -> NDArray[np.uint8]:
    """Return the states, uint8 [T]: speaking has priority, listening extends 0.6 s beyond a partner's phrase."""
    linger = round(0.6 * VIDEO_FPS)
    listening = other.speech.copy()
    for shift in range(1, linger + 1):
        listening[shift:] |= other.speech[:-shift]
    return np.where(speaking > 0, SPEAK, np.where(listening, LISTEN, IDLE)).astype(np.uint8)


def _backchannels(own: VoiceCues, other: VoiceCues) -> tuple[tuple[int, int], ...]:
    """Return the frame spans of own short phrases with partner speech within a second before and after."""
    found = []
    for phrase in own.phrases:
        start, end = phrase.start_sample // SAMPLES_PER_FRAME, phrase.end_sample // SAMPLES_PER_FRAME + 1
        short = end - start <= _BACKCHANNEL_S * VIDEO_FPS
        before, after = other.speech[max(0, start - VIDEO_FPS) : start], other.speech[end : end + VIDEO_FPS]
        if short and before.any() and after.any():
            found.append((start, end))
    return tuple(found)


def _nods(
    own: VoiceCues,
    other: VoiceCues,
    backchannels: Sequence[tuple[int, int]],
    speaking: NDArray[np.float32],
    habits: np.random.Generator,
) -> list[tuple[int, int, float]]:
    """Return the nods as (first frame, beats, depth in radians)."""
    habit = float(habits.uniform(0.37, 0.43))
    frames = len(speaking)
    nods = []
    for phrase in other.phrases:
        seconds = (phrase.end_sample - phrase.start_sample) / (SAMPLES_PER_FRAME * VIDEO_FPS)
        first = round(phrase.end_sample / SAMPLES_PER_FRAME + (habit + float(habits.uniform(-0.01, 0.01))) * VIDEO_FPS)
        if seconds < NOD_AFTER_SPEECH_S or first >= frames:
            continue
        answered = any(start - 12 <= first <= end for start, end in backchannels)
        if speaking[first] and not answered:
            continue
        depth = 0.07 + 0.07 * min(phrase.level / _USUAL_LEVEL, 1.6)
        nods.append((first, 2 if seconds >= _TWO_BEATS_S else 1, depth))
    return nods


def _add_nods(rotation: NDArray[np.float32], nods: Sequence[tuple[int, int, float]], frames: int) -> NDArray[np.uint8]:
    """Add nods to the head pitch: down first, then slightly above rest; returns the nod mask, uint8 [T]."""
    mask = np.zeros(frames, np.uint8)
    phase = (np.arange(_BEAT_FRAMES) + 1) / (_BEAT_FRAMES + 1)
    beat = np.sin(np.pi * phase) ** 1.5 - 0.25 * np.maximum(np.sin(2 * np.pi * (phase - 0.5)), 0.0)
    for first, beats, depth in nods:
        for count in range(beats):
            start = first + count * _BEAT_FRAMES
            length = max(0, min(_BEAT_FRAMES, frames - start))
            rotation[start : start + length, 0] += (depth * 0.7**count * beat[:length]).astype(np.float32)
            mask[start : start + length] = 1
    return mask


def _smile_reaction(other: VoiceCues, gain: float) -> NDArray[np.float32]:
    warmth = np.clip(other.level / _USUAL_LEVEL, 0.0, 1.6) * 0.8 + 0.06 * np.clip(other.pitch, 0.0, 6.0)
    return (gain * np.clip(delay(smooth(warmth, 0.5), 0.25), 0.0, 0.9)).astype(np.float32)


def _stress(voice: VoiceCues) -> NDArray[np.float32]:
    """Return the stress of every frame, float32 [T]: louder than the last second, or higher than usual."""
    louder = np.clip((voice.level - smooth(voice.level, 1.0)) / _USUAL_LEVEL, 0.0, 1.0)
    return np.asarray(1.1 * louder + 0.12 * np.clip(voice.pitch - 1.0, 0.0, 5.0), np.float32)


def _raise_brows(
    shapes: NDArray[np.float32],
    own: VoiceCues,
    other: VoiceCues,
    speaking: NDArray[np.float32],
    listening_weight: NDArray[np.float32],
) -> None:
    spoken = smooth(_stress(own), 0.12) * speaking
    reaction = delay(smooth(_stress(other), 0.2), 0.3) * listening_weight
    lift = np.clip(spoken + reaction, 0.0, 0.8)
    for name, weight in (("browInnerUp", 0.8), ("browOuterUp_L", 1.0), ("browOuterUp_R", 1.0)):
        shapes[:, ARKIT_INDEX[name]] += (weight * lift).astype(np.float32)


def _move_head(
    rotation: NDArray[np.float32],
    translation: NDArray[np.float32],
    own: VoiceCues,
    other: VoiceCues,
    speaking: NDArray[np.float32],
    listening_weight: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Add sway, breathing, beats of own speech and the listener's tilt."""
    frames = len(speaking)
    level = own.level / _USUAL_LEVEL
    stress = smooth(level, 0.08) - smooth(level, 0.5)
    lively = 1.0 + 0.6 * smooth(speaking, 0.4)
    attention = smooth(other.speech.astype(np.float32), 1.0) * smooth(listening_weight, 0.3)
    rotation[:, 0] += 0.04 * stress + 0.006 * lively * _smooth_noise(frames, rng) + 0.02 * attention
    rotation[:, 1] += 0.008 * smooth(own.pitch, 0.3) + 0.012 * lively * _smooth_noise(frames, rng)
    rotation[:, 2] += 0.006 * lively * _smooth_noise(frames, rng) + 0.045 * attention
    breath = np.sin(2 * np.pi * (np.arange(frames) / VIDEO_FPS * rng.uniform(0.22, 0.3) + rng.uniform()))
    translation[:, 0] += 0.003 * _smooth_noise(frames, rng)
    translation[:, 1] += (0.003 * breath).astype(np.float32)
    translation[:, 2] += 0.015 * attention


def _smooth_noise(frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return slow smooth noise of about unit amplitude, float32 [T]."""
    time = np.arange(frames) / VIDEO_FPS
    waves = [np.sin(2 * np.pi * (rate * rng.uniform(0.8, 1.2) * time + rng.uniform())) for rate in (0.1, 0.23, 0.41)]
    return np.asarray(0.8 * waves[0] + 0.5 * waves[1] + 0.3 * waves[2], np.float32)


def _add_emotion(shapes: NDArray[np.float32], emotion: str | Sequence[str]) -> None:
    """Add the emotion's blendshapes, cross-faded over about half a second."""
    frames = len(shapes)
    labels = [emotion] * frames if isinstance(emotion, str) else list(emotion)
    unknown = sorted(set(labels) - set(EMOTIONS))
    if unknown:
        raise ValueError(f"unknown emotion {unknown[0]!r}: give one of {', '.join(EMOTIONS)}")
    if len(labels) != frames:
        raise ValueError(f"{len(labels)} emotions for {frames} frames: give one name, or one per frame")
    for name in set(labels):
        present = np.asarray([label == name for label in labels], np.float32)
        strength = smooth(present, 0.25) if len(set(labels)) > 1 else present
        for shape, weight in EMOTIONS[name].items():
            shapes[:, ARKIT_INDEX[shape]] += weight * strength


def _add_blinks(shapes: NDArray[np.float32], phrases: Sequence[Phrase], rng: np.random.Generator) -> None:
    """Add blinks every 2 to 6 s, shifted to the ends of phrases where one is near."""
    frames = len(shapes)
    ends = sorted(round(p.end_sample / SAMPLES_PER_FRAME) for p in phrases)
    curve = np.asarray([0.45, 1.0, 1.0, 0.6, 0.2], np.float32)
    at = float(rng.uniform(0.5, 3.0)) * VIDEO_FPS
    while at < frames:
        near = [end + 3 for end in ends if 0 <= end + 3 - at <= 1.2 * VIDEO_FPS]
        first = near[0] if near else int(at)
        length = max(0, min(len(curve), frames - first))
        for side in "LR":
            lid = shapes[first : first + length, ARKIT_INDEX[f"eyeBlink_{side}"]]
            np.maximum(lid, curve[:length], out=lid)
        at = first + float(rng.uniform(2.0, 6.0)) * VIDEO_FPS


def _gaze_track(own: VoiceCues, frames: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the gaze, float32 [T, 2]: at the camera with saccades, briefly aside when a long own phrase begins."""
    gaze = np.zeros((frames, 2), np.float32)
    at = 0
    while at < frames:
        length = int(rng.uniform(0.6, 2.2) * VIDEO_FPS)
        gaze[at : at + length] = rng.normal(0.0, 0.02, 2)
        at += length
    for phrase in own.phrases:
        side, lift = float(rng.choice((-1.0, 1.0))), float(rng.uniform(-0.12, -0.02))
        first = phrase.start_sample // SAMPLES_PER_FRAME
        if phrase.end_sample - phrase.start_sample > 1.5 * VIDEO_FPS * SAMPLES_PER_FRAME:
            gaze[first : first + int(rng.uniform(0.4, 0.9) * VIDEO_FPS)] += (0.22 * side, lift)
    kernel = np.asarray([0.2, 0.6, 0.2])
    for axis in range(2):
        gaze[:, axis] = np.convolve(np.pad(gaze[:, axis], 1, mode="edge"), kernel, mode="valid")
    return gaze
