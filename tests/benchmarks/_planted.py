"""Clean rendered clips and the defects that the benchmark plants in them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from components.curate.config import SourceLimits
from components.curate.video.decode import audio_track, video_frames
from components.performer.compose import render_corpus
from components.performer.config import PerformerConfig
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, STATES
from lpm_model.progress import Progress

CLIP_FRAMES = 93
"""Length of a clean clip: 3.9 s."""

Video = NDArray[np.uint8]
Audio = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Material:
    """One clean clip."""

    frames: Video
    """RGB [T, H, W, 3]."""
    audio: Audio
    """int16 [T * 1000]."""
    speaking: float
    """Fraction of frames in which its person speaks."""
    voiced: float
    """Fraction of frames in which anybody speaks."""
    name: str
    """Recording and half."""
    recording: tuple[Video, Audio]
    """Frames and audio of the whole recording, 8 s."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A clip with a planted defect."""

    frames: Video
    """RGB [T, H, W, 3]; H and W even."""
    audio: Audio
    """int16 [T * 1000]."""


def clean_clips(
    cache: Path, conversations: int, size_px: int, seed: int, progress: Progress, workers: int = 1
) -> list[Material]:
    """Return two clips from each camera of held-out conversations, rendered once and cached in `cache`."""
    config = PerformerConfig(
        conversations=conversations, seconds_per_conversation=8.0, two_shots=False, size_px=size_px, seed=seed,
        bank="heldout", workers=workers,
    )  # fmt: skip
    recordings = render_corpus(cache / "media", config, progress, cache / "truth")
    return [clip for one in recordings for clip in halves(one.file, cache / "truth" / f"{one.file.stem}.npz")]


def halves(file: Path, ground_truth: Path) -> list[Material]:
    """Return the first and the last clip of a rendered recording with ground truth."""
    decoded = [frame.rgb for _, frame, _ in video_frames(file, SourceLimits())]
    frames, audio = np.stack(decoded), audio_track(file, len(decoded), SourceLimits())
    with np.load(ground_truth) as data:
        states = data["state"]
    found = []
    for half, start in enumerate((0, len(frames) - CLIP_FRAMES)):
        span = slice(start, start + CLIP_FRAMES)
        found.append(
            Material(
                frames=frames[span],
                audio=audio[start * SAMPLES_PER_FRAME : (start + CLIP_FRAMES) * SAMPLES_PER_FRAME],
                speaking=float((states[span] == STATES["speak"]).mean()),
                voiced=float(np.isin(states[span], (STATES["speak"], STATES["listen"])).mean()),
                name=f"{file.stem}_{half}",
                recording=(frames, audio),
            )
        )
    return found


Plant = Callable[[Material, Material, np.random.Generator], Planted]
"""(clean clip, clip of another person, random generator) -> clip with the defect."""


def _change_video(change: Callable[[Video, np.random.Generator], Video]) -> Plant:
    """Plant a defect in the video only."""

    def plant(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
        return Planted(frames=change(clip.frames.copy(), chance), audio=clip.audio)

    return plant


def _change_audio(change: Callable[[Material, Material, np.random.Generator], Audio]) -> Plant:
    """Plant a defect in the audio only."""

    def plant(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
        return Planted(frames=clip.frames, audio=change(clip, other, chance))

    return plant


def _frozen(video: Video, chance: np.random.Generator) -> Video:
    """The video freezes from some frame on."""
    stop = int(chance.integers(1, len(video) - 60))
    video[stop:] = video[stop]
    return video


def _letterboxed(video: Video, chance: np.random.Generator) -> Video:
    """Black bars at top and bottom, or left and right."""
    size = video.shape[1]
    bar = int(size * chance.uniform(0.06, 0.14))
    rows, columns = (size - 2 * bar, size) if chance.random() < 0.6 else (size, size - 2 * bar)
    out = np.zeros_like(video)
    top, left = (size - rows) // 2, (size - columns) // 2
    for target, frame in zip(out, video, strict=True):
        target[top : top + rows, left : left + columns] = cv2.resize(frame, (columns, rows))
    return out


_LOGOS = ("ring", "star", "bars", "shield")


def _logo(video: Video, chance: np.random.Generator) -> Video:
    """A channel logo in a corner: a flat shape without letters, slightly transparent."""
    size = video.shape[1]
    side = int(size * chance.uniform(0.11, 0.17))
    margin = int(size * chance.uniform(0.02, 0.05))
    mark, cover = np.zeros((4 * side, 4 * side, 3), np.uint8), np.zeros((4 * side, 4 * side), np.uint8)
    colour = tuple(int(v) for v in chance.choice([(250, 250, 250), (230, 30, 40), (250, 210, 30), (30, 60, 200)]))
    kind, middle = str(chance.choice(_LOGOS)), 2 * side
    for target, ink in ((mark, colour), (cover, (255, 255, 255))):
        if kind == "ring":
            cv2.circle(target, (middle, middle), int(1.7 * side), ink, side // 2)
            cv2.circle(target, (middle, middle), side // 2, ink, -1)
        elif kind == "bars":
            for n in range(3):
                cv2.rectangle(
                    target, (n * 4 * side // 3, (2 - n) * side), (n * 4 * side // 3 + side, 4 * side), ink, -1
                )
        elif kind == "star":
            turn = np.arange(10) * np.pi / 5
            reach = side * np.where(np.arange(10) % 2, 0.8, 1.9)
            points = middle + np.stack([np.sin(turn), -np.cos(turn)], 1) * reach[:, None]
            cv2.fillPoly(target, [points.astype(np.int32)], ink)
        else:
            points = np.array([[0.3, 0.3], [3.7, 0.3], [3.5, 2.4], [2, 3.8], [0.5, 2.4]]) * side
            cv2.fillPoly(target, [points.astype(np.int32)], ink)
            cv2.circle(target, (middle, int(1.6 * side)), int(0.7 * side), (0, 0, 0) if target is mark else ink, -1)
    small = cv2.resize(mark, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    alpha = cv2.resize(cover, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    alpha *= chance.uniform(0.7, 1.0)
    y = margin if chance.random() < 0.7 else size - margin - side
    x = margin if chance.random() < 0.5 else size - margin - side
    part = video[:, y : y + side, x : x + side]
    part[:] = np.round(part * (1 - alpha) + small * alpha).astype(np.uint8)
    return video


_WORDS = (
    "I think we should go", "what did she say", "see you next week", "it was a long day", "nobody told me that",
    "are you sure about it", "that is good news", "we have to leave now",
)  # fmt: skip


def _subtitle(video: Video, chance: np.random.Generator) -> Video:
    """One or two lines of text near the bottom, changing once."""
    size = video.shape[1]
    style = int(chance.integers(3))
    turn = int(chance.integers(20, len(video) - 20))
    for words, part in ((chance.choice(_WORDS, 2), video[:turn]), (chance.choice(_WORDS, 2), video[turn:])):
        lines = [str(word) for word in words[: int(chance.integers(1, 3))]]
        scale = size / 192 * float(chance.uniform(0.40, 0.5))
        for frame in part:
            _write(frame, lines, scale, style)
    return video


def _write(frame: Video, lines: list[str], scale: float, style: int) -> None:
    height, width = frame.shape[:2]
    up = 3
    large = cv2.resize(frame, (width * up, height * up), interpolation=cv2.INTER_CUBIC)
    step = int(34 * scale * up)
    for n, line in enumerate(reversed(lines)):
        font, thick = cv2.FONT_HERSHEY_DUPLEX, max(round(1.5 * up * scale), 1)
        (wide, high), _ = cv2.getTextSize(line, font, scale * up, thick)
        at = ((width * up - wide) // 2, height * up - int(0.05 * height * up) - n * step)
        if style == 2:
            cv2.rectangle(large, (at[0] - 6, at[1] - high - 8), (at[0] + wide + 6, at[1] + 10), (0, 0, 0), -1)
        elif style == 1:
            cv2.putText(large, line, at, font, scale * up, (0, 0, 0), thick * 3, cv2.LINE_AA)
        ink = (255, 255, 255) if style != 1 else (255, 235, 60)
        cv2.putText(large, line, at, font, scale * up, ink, thick, cv2.LINE_AA)
    frame[:] = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def _inset(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
    """Picture-in-picture: another recording plays in a corner."""
    video, size = clip.frames.copy(), clip.frames.shape[1]
    side = int(size * chance.uniform(0.26, 0.34))
    margin = int(size * chance.uniform(0.0, 0.04))
    y = margin if chance.random() < 0.5 else size - margin - side
    x = margin if chance.random() < 0.5 else size - margin - side
    for frame, inner in zip(video, other.frames, strict=True):
        frame[y : y + side, x : x + side] = cv2.resize(inner, (side, side), interpolation=cv2.INTER_AREA)
    return Planted(frames=video, audio=clip.audio)


def _blur(video: Video, chance: np.random.Generator) -> Video:
    """Out of focus."""
    sigma = video.shape[1] * float(chance.uniform(0.016, 0.03))
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])


def _dark(video: Video, chance: np.random.Generator) -> Video:
    """Underexposed."""
    return np.round(video * chance.uniform(0.05, 0.13)).astype(np.uint8)


def _overexposed(video: Video, chance: np.random.Generator) -> Video:
    """Overexposed: large areas are clipped to white."""
    return np.clip(video * chance.uniform(2.2, 3.2) + 40, 0, 255).astype(np.uint8)


def _flicker(video: Video, chance: np.random.Generator) -> Video:
    """Light that flickers against the shutter."""
    period = float(chance.uniform(2.0, 5.0))
    depth = float(chance.uniform(0.10, 0.25))
    gain = 1 + depth * np.sin(2 * np.pi * np.arange(len(video)) / period + chance.uniform(0, 6))
    return np.clip(video * gain[:, None, None, None], 0, 255).astype(np.uint8)


def _colour_cast(video: Video, chance: np.random.Generator) -> Video:
    """A colour cast over the whole frame."""
    gains = np.array([1.0, 0.55, 0.45]) if chance.random() < 0.5 else np.array([0.5, 0.7, 1.15])
    if chance.random() < 0.3:
        gains = np.array([0.6, 1.1, 0.55])
    return np.clip(video * gains, 0, 255).astype(np.uint8)


def _shake(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
    """A hand-held camera before a textured wall."""
    video = clip.frames.copy()
    size = video.shape[1]
    jitter = chance.normal(0, 0.013 * size, (len(video), 2))
    zoom = 1.12
    grown = [cv2.resize(frame, None, fx=zoom, fy=zoom) for frame in _papered(video, chance)]
    spare = grown[0].shape[0] - size
    for target, frame, (dx, dy) in zip(video, grown, jitter, strict=True):
        move = np.float32([[1, 0, dx - spare / 2], [0, 1, dy - spare / 2]])
        target[:] = cv2.warpAffine(frame, move, (size, size), borderMode=cv2.BORDER_REFLECT)
    return Planted(frames=video, audio=clip.audio)


def _papered(video: Video, chance: np.random.Generator) -> Video:
    """A pattern in the upper corners of the wall, such as wallpaper or shelves."""
    size = video.shape[1]
    paper = chance.normal(0, 1, (size, size)).astype(np.float32)
    paper = cv2.GaussianBlur(paper, (0, 0), size / 48)
    paper *= 22 / paper.std()
    weight = np.zeros((size, size), np.float32)
    weight[: size // 2, : size // 4] = weight[: size // 2, -size // 4 :] = 1
    weight = cv2.GaussianBlur(weight, (0, 0), size / 40)
    return np.clip(video + (paper * weight)[None, :, :, None], 0, 255).astype(np.uint8)


def _wrong_audio(clip: Material, other: Material, _: np.random.Generator) -> Audio:
    return other.audio


def _shifted_audio(clip: Material, _: Material, chance: np.random.Generator) -> Audio:
    """Audio that is 8 to 15 frames early or late."""
    shift = int(chance.integers(8, 16)) * (1 if chance.random() < 0.5 else -1)
    return np.roll(clip.audio, shift * SAMPLES_PER_FRAME)


def _two_faces(clip: Material, other: Material, _: np.random.Generator) -> Planted:
    """Two heads cheek to cheek."""
    size = clip.frames.shape[1]
    middle = slice(size // 4, size // 4 + size // 2)
    both = np.concatenate([clip.frames[:, :, middle], other.frames[:, :, middle]], axis=2)
    return Planted(frames=both, audio=clip.audio)


def _no_face(video: Video, chance: np.random.Generator) -> Video:
    """Everything except the shoulders is hidden by a moving object."""
    size = video.shape[1]
    cover = cv2.GaussianBlur(chance.normal(128, 60, (size, size, 3)).astype(np.float32), (0, 0), size / 16)
    cover = np.clip(128 + (cover - cover.mean()) * 12, 0, 255).astype(np.uint8)
    for n, frame in enumerate(video):
        frame[: int(0.8 * size)] = np.roll(cover, n, axis=1)[: int(0.8 * size)]
    return video


def _tiny_face(video: Video, chance: np.random.Generator) -> Video:
    """The person is far away."""
    size = video.shape[1]
    side = int(size * chance.uniform(0.26, 0.32))
    out = np.empty_like(video)
    x, y = (int(v) for v in chance.integers(size // 4, 3 * size // 4 - side, 2))
    for target, frame in zip(out, video, strict=True):
        wall = cv2.GaussianBlur(frame[: size // 8], (0, 0), size / 10)
        target[:] = cv2.resize(wall, (size, size))
        target[y : y + side, x : x + side] = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
    return out


def _hard_cut(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
    at = _turn(clip, chance)
    frames = np.concatenate([clip.frames[:at], other.frames[at:]])
    audio = np.concatenate([clip.audio[: at * SAMPLES_PER_FRAME], other.audio[at * SAMPLES_PER_FRAME :]])
    return Planted(frames=frames, audio=audio)


def _dissolve(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
    at, length = _turn(clip, chance), int(chance.integers(12, 24))
    mix = np.clip((np.arange(len(clip.frames)) - at + length / 2) / length, 0, 1)
    weight = mix[:, None, None, None]
    frames = np.round(clip.frames * (1 - weight) + other.frames * weight).astype(np.uint8)
    fade = np.repeat(mix, SAMPLES_PER_FRAME)
    return Planted(frames=frames, audio=np.round(clip.audio * (1 - fade) + other.audio * fade).astype(np.int16))


def _turn(clip: Material, chance: np.random.Generator) -> int:
    """A frame in the middle, so that both parts are too short for a clip of their own."""
    middle = len(clip.frames) // 2
    return int(chance.integers(middle - 1, middle + 3))


def _music_only(clip: Material, _: Material, chance: np.random.Generator) -> Audio:
    """Chords, a melody and a beat instead of voices."""
    total = len(clip.audio)
    at = np.arange(total) / AUDIO_RATE
    tempo = float(chance.uniform(80, 140)) / 60
    root = float(chance.uniform(110, 220))
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    wave = np.zeros(total)
    for beat in range(int(at[-1] * tempo) + 1):
        since = at - beat / tempo
        on = (since >= 0) & (since < 2 / tempo)
        decay = np.where(on, np.exp(-since * chance.uniform(1.5, 4)), 0)
        notes = [int(chance.choice(scale)) + 12] + ([0, 4, 7] if beat % 4 == 0 else [])
        for note in notes:
            tone = root * 2 ** (note / 12)
            wave += decay * sum(np.sin(2 * np.pi * k * tone * since) / k**1.3 for k in range(1, 6))
        if chance.random() < 0.7:
            wave += np.where(on, np.exp(-since * 40), 0) * chance.normal(0, 0.7, total)
    return np.round(wave / np.abs(wave).max() * 32767 * chance.uniform(0.2, 0.6)).astype(np.int16)


def _silence(clip: Material, _: Material, chance: np.random.Generator) -> Audio:
    """A dead microphone: only its own noise, or digital silence."""
    level = float(chance.choice([0.0, 1.0, 3.0]))
    return np.round(chance.normal(0, 1, len(clip.audio)) * level).astype(np.int16)


def _sped_up(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
    """The whole recording plays 1.6 to 2 times faster."""
    frames, audio = clip.recording
    speed = float(chance.uniform(1.6, 2.0))
    chosen = np.round(np.arange(int(len(frames) / speed)) * speed).astype(int)
    at = np.arange(len(chosen) * SAMPLES_PER_FRAME) * speed
    fast = np.interp(at, np.arange(len(audio)), audio.astype(np.float32))
    return Planted(frames=frames[chosen], audio=np.round(fast).astype(np.int16))


def _duplicate(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
    """A copy of the clip: re-encoded, with another brightness and loudness, a few frames off."""
    skip = int(chance.integers(0, 10))
    frames = np.clip(clip.frames[skip:] * chance.uniform(0.92, 1.08), 0, 255).astype(np.uint8)
    small = int(frames.shape[1] * chance.uniform(0.7, 1.0)) // 2 * 2
    resized = np.stack([cv2.resize(frame, (small, small), interpolation=cv2.INTER_AREA) for frame in frames])
    audio = np.round(clip.audio[skip * SAMPLES_PER_FRAME :] * chance.uniform(0.5, 1.0)).astype(np.int16)
    return Planted(frames=resized, audio=audio)


KINDS: dict[str, Plant] = {
    "frozen": _change_video(_frozen),
    "letterboxed": _change_video(_letterboxed),
    "logo": _change_video(_logo),
    "subtitle": _change_video(_subtitle),
    "picture in picture": _inset,
    "blur": _change_video(_blur),
    "dark": _change_video(_dark),
    "over-exposed": _change_video(_overexposed),
    "flicker": _change_video(_flicker),
    "colour cast": _change_video(_colour_cast),
    "camera shake": _shake,
    "duplicate": _duplicate,
    "wrong audio": _change_audio(_wrong_audio),
    "shifted audio": _change_audio(_shifted_audio),
    "two faces": _two_faces,
    "no face": _change_video(_no_face),
    "tiny face": _change_video(_tiny_face),
    "hard cut": _hard_cut,
    "dissolve": _dissolve,
    "music only": _change_audio(_music_only),
    "silence": _change_audio(_silence),
    "sped up": _sped_up,
}
"""Every defect by name."""
