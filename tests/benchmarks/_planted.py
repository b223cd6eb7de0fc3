"""Clean clips of performers, and ways to spoil them: what the benchmark of planted defects is made of."""

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

Picture = NDArray[np.uint8]
Sound = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class Material:
    """One clean clip."""

    pictures: Picture
    """RGB [T, H, W, 3]."""
    sound: Sound
    """int16 [T * 1000]."""
    speaks: float
    """Share of frames in which its person speaks."""
    heard: float
    """Share of frames in which anybody speaks."""
    name: str
    """Recording and half."""
    recording: tuple[Picture, Sound]
    """All of it, 8 s."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A spoiled clip."""

    pictures: Picture
    """RGB [T, H, W, 3]; H and W even."""
    sound: Sound
    """int16 [T * 1000]."""


def clean_clips(
    cache: Path, conversations: int, size_px: int, seed: int, progress: Progress, workers: int = 1
) -> list[Material]:
    """Two clips from each camera of held-out conversations; rendered once and kept in `cache`."""
    config = PerformerConfig(
        conversations=conversations, seconds_per_conversation=8.0, two_shots=False, size_px=size_px, seed=seed,
        bank="heldout", workers=workers,
    )  # fmt: skip
    recordings = render_corpus(cache / "media", config, progress, cache / "truth")
    return [clip for one in recordings for clip in halves(one.file, cache / "truth" / f"{one.file.stem}.npz")]


def halves(file: Path, truth: Path) -> list[Material]:
    """The first and the last clip of a performed recording with its truth."""
    frames = [picture.rgb for _, picture, _ in video_frames(file, SourceLimits())]
    pictures, sound = np.stack(frames), audio_track(file, len(frames), SourceLimits())
    with np.load(truth) as data:
        states = data["state"]
    found = []
    for half, start in enumerate((0, len(frames) - CLIP_FRAMES)):
        span = slice(start, start + CLIP_FRAMES)
        found.append(
            Material(
                pictures=pictures[span],
                sound=sound[start * SAMPLES_PER_FRAME : (start + CLIP_FRAMES) * SAMPLES_PER_FRAME],
                speaks=float((states[span] == STATES["speak"]).mean()),
                heard=float(np.isin(states[span], (STATES["speak"], STATES["listen"])).mean()),
                name=f"{file.stem}_{half}",
                recording=(pictures, sound),
            )
        )
    return found


Plant = Callable[[Material, Material, np.random.Generator], Planted]
"""(clean clip, a clip of somebody else, chance) to a spoiled one."""


def _same_sound(change: Callable[[Picture, np.random.Generator], Picture]) -> Plant:
    """Spoil the pictures only."""

    def plant(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
        return Planted(pictures=change(clip.pictures.copy(), chance), sound=clip.sound)

    return plant


def _same_pictures(change: Callable[[Material, Material, np.random.Generator], Sound]) -> Plant:
    """Spoil the sound only."""

    def plant(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
        return Planted(pictures=clip.pictures, sound=change(clip, other, chance))

    return plant


def _frozen(video: Picture, chance: np.random.Generator) -> Picture:
    """The picture stands still from some moment on."""
    stop = int(chance.integers(1, len(video) - 60))
    video[stop:] = video[stop]
    return video


def _letterboxed(video: Picture, chance: np.random.Generator) -> Picture:
    """Black bars above and below, or at both sides."""
    size = video.shape[1]
    bar = int(size * chance.uniform(0.06, 0.14))
    rows, columns = (size - 2 * bar, size) if chance.random() < 0.6 else (size, size - 2 * bar)
    out = np.zeros_like(video)
    top, left = (size - rows) // 2, (size - columns) // 2
    for target, picture in zip(out, video, strict=True):
        target[top : top + rows, left : left + columns] = cv2.resize(picture, (columns, rows))
    return out


_LOGOS = ("ring", "star", "bars", "shield")


def _logo(video: Picture, chance: np.random.Generator) -> Picture:
    """A station's mark in a corner: a flat shape without letters, slightly transparent."""
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


def _subtitle(video: Picture, chance: np.random.Generator) -> Picture:
    """One or two lines of words near the lower edge, changing once."""
    size = video.shape[1]
    style = int(chance.integers(3))
    turn = int(chance.integers(20, len(video) - 20))
    for words, part in ((chance.choice(_WORDS, 2), video[:turn]), (chance.choice(_WORDS, 2), video[turn:])):
        lines = [str(word) for word in words[: int(chance.integers(1, 3))]]
        scale = size / 192 * float(chance.uniform(0.40, 0.5))
        for picture in part:
            _write(picture, lines, scale, style)
    return video


def _write(picture: Picture, lines: list[str], scale: float, style: int) -> None:
    height, width = picture.shape[:2]
    up = 3
    large = cv2.resize(picture, (width * up, height * up), interpolation=cv2.INTER_CUBIC)
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
    picture[:] = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def _inset(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
    """Picture in picture: another recording plays in a corner."""
    video, size = clip.pictures.copy(), clip.pictures.shape[1]
    side = int(size * chance.uniform(0.26, 0.34))
    margin = int(size * chance.uniform(0.0, 0.04))
    y = margin if chance.random() < 0.5 else size - margin - side
    x = margin if chance.random() < 0.5 else size - margin - side
    for picture, inner in zip(video, other.pictures, strict=True):
        picture[y : y + side, x : x + side] = cv2.resize(inner, (side, side), interpolation=cv2.INTER_AREA)
    return Planted(pictures=video, sound=clip.sound)


def _blur(video: Picture, chance: np.random.Generator) -> Picture:
    """Out of focus."""
    sigma = video.shape[1] * float(chance.uniform(0.016, 0.03))
    return np.stack([cv2.GaussianBlur(picture, (0, 0), sigma) for picture in video])


def _dark(video: Picture, chance: np.random.Generator) -> Picture:
    """Hardly lit."""
    return np.round(video * chance.uniform(0.05, 0.13)).astype(np.uint8)


def _overexposed(video: Picture, chance: np.random.Generator) -> Picture:
    """Much too bright: large parts are plain white."""
    return np.clip(video * chance.uniform(2.2, 3.2) + 40, 0, 255).astype(np.uint8)


def _flicker(video: Picture, chance: np.random.Generator) -> Picture:
    """Light that beats with the shutter."""
    period = float(chance.uniform(2.0, 5.0))
    depth = float(chance.uniform(0.10, 0.25))
    gain = 1 + depth * np.sin(2 * np.pi * np.arange(len(video)) / period + chance.uniform(0, 6))
    return np.clip(video * gain[:, None, None, None], 0, 255).astype(np.uint8)


def _colour_cast(video: Picture, chance: np.random.Generator) -> Picture:
    """One colour lies over everything."""
    gains = np.array([1.0, 0.55, 0.45]) if chance.random() < 0.5 else np.array([0.5, 0.7, 1.15])
    if chance.random() < 0.3:
        gains = np.array([0.6, 1.1, 0.55])
    return np.clip(video * gains, 0, 255).astype(np.uint8)


def _shake(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
    """A hand-held camera in front of a textured wall."""
    video = clip.pictures.copy()
    size = video.shape[1]
    jitter = chance.normal(0, 0.013 * size, (len(video), 2))
    zoom = 1.12
    grown = [cv2.resize(picture, None, fx=zoom, fy=zoom) for picture in _papered(video, chance)]
    spare = grown[0].shape[0] - size
    for target, picture, (dx, dy) in zip(video, grown, jitter, strict=True):
        move = np.float32([[1, 0, dx - spare / 2], [0, 1, dy - spare / 2]])
        target[:] = cv2.warpAffine(picture, move, (size, size), borderMode=cv2.BORDER_REFLECT)
    return Planted(pictures=video, sound=clip.sound)


def _papered(video: Picture, chance: np.random.Generator) -> Picture:
    """A pattern on the upper corners of the wall, as wallpaper or shelves give."""
    size = video.shape[1]
    paper = chance.normal(0, 1, (size, size)).astype(np.float32)
    paper = cv2.GaussianBlur(paper, (0, 0), size / 48)
    paper *= 22 / paper.std()
    weight = np.zeros((size, size), np.float32)
    weight[: size // 2, : size // 4] = weight[: size // 2, -size // 4 :] = 1
    weight = cv2.GaussianBlur(weight, (0, 0), size / 40)
    return np.clip(video + (paper * weight)[None, :, :, None], 0, 255).astype(np.uint8)


def _wrong_sound(clip: Material, other: Material, _: np.random.Generator) -> Sound:
    return other.sound


def _shifted_sound(clip: Material, _: Material, chance: np.random.Generator) -> Sound:
    """Sound that comes 8 to 15 frames early or late."""
    frames = int(chance.integers(8, 16)) * (1 if chance.random() < 0.5 else -1)
    return np.roll(clip.sound, frames * SAMPLES_PER_FRAME)


def _two_faces(clip: Material, other: Material, _: np.random.Generator) -> Planted:
    """Two heads cheek to cheek."""
    size = clip.pictures.shape[1]
    middle = slice(size // 4, size // 4 + size // 2)
    both = np.concatenate([clip.pictures[:, :, middle], other.pictures[:, :, middle]], axis=2)
    return Planted(pictures=both, sound=clip.sound)


def _no_face(video: Picture, chance: np.random.Generator) -> Picture:
    """Everything but the shoulders is hidden behind something moving."""
    size = video.shape[1]
    cover = cv2.GaussianBlur(chance.normal(128, 60, (size, size, 3)).astype(np.float32), (0, 0), size / 16)
    cover = np.clip(128 + (cover - cover.mean()) * 12, 0, 255).astype(np.uint8)
    for n, picture in enumerate(video):
        picture[: int(0.8 * size)] = np.roll(cover, n, axis=1)[: int(0.8 * size)]
    return video


def _tiny_face(video: Picture, chance: np.random.Generator) -> Picture:
    """The person stands far away."""
    size = video.shape[1]
    side = int(size * chance.uniform(0.26, 0.32))
    out = np.empty_like(video)
    x, y = (int(v) for v in chance.integers(size // 4, 3 * size // 4 - side, 2))
    for target, picture in zip(out, video, strict=True):
        wall = cv2.GaussianBlur(picture[: size // 8], (0, 0), size / 10)
        target[:] = cv2.resize(wall, (size, size))
        target[y : y + side, x : x + side] = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return out


def _hard_cut(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
    at = _turn(clip, chance)
    pictures = np.concatenate([clip.pictures[:at], other.pictures[at:]])
    sound = np.concatenate([clip.sound[: at * SAMPLES_PER_FRAME], other.sound[at * SAMPLES_PER_FRAME :]])
    return Planted(pictures=pictures, sound=sound)


def _dissolve(clip: Material, other: Material, chance: np.random.Generator) -> Planted:
    at, length = _turn(clip, chance), int(chance.integers(12, 24))
    share = np.clip((np.arange(len(clip.pictures)) - at + length / 2) / length, 0, 1)
    weight = share[:, None, None, None]
    pictures = np.round(clip.pictures * (1 - weight) + other.pictures * weight).astype(np.uint8)
    fade = np.repeat(share, SAMPLES_PER_FRAME)
    return Planted(pictures=pictures, sound=np.round(clip.sound * (1 - fade) + other.sound * fade).astype(np.int16))


def _turn(clip: Material, chance: np.random.Generator) -> int:
    """A frame in the middle: what lies before and after it is too short for a clip of its own."""
    middle = len(clip.pictures) // 2
    return int(chance.integers(middle - 1, middle + 3))


def _music_only(clip: Material, _: Material, chance: np.random.Generator) -> Sound:
    """Chords, a tune and a beat instead of voices."""
    total = len(clip.sound)
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


def _silence(clip: Material, _: Material, chance: np.random.Generator) -> Sound:
    """A dead microphone: nothing but its own hiss, or nothing at all."""
    level = float(chance.choice([0.0, 1.0, 3.0]))
    return np.round(chance.normal(0, 1, len(clip.sound)) * level).astype(np.int16)


def _sped_up(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
    """The whole recording plays 1.6 to 2 times as fast, as in a hasty edit."""
    pictures, sound = clip.recording
    speed = float(chance.uniform(1.6, 2.0))
    frames = np.round(np.arange(int(len(pictures) / speed)) * speed).astype(int)
    at = np.arange(len(frames) * SAMPLES_PER_FRAME) * speed
    fast = np.interp(at, np.arange(len(sound)), sound.astype(np.float32))
    return Planted(pictures=pictures[frames], sound=np.round(fast).astype(np.int16))


def _duplicate(clip: Material, _: Material, chance: np.random.Generator) -> Planted:
    """The same clip again: encoded anew, another brightness, another loudness, a few frames off."""
    skip = int(chance.integers(0, 10))
    pictures = np.clip(clip.pictures[skip:] * chance.uniform(0.92, 1.08), 0, 255).astype(np.uint8)
    small = int(pictures.shape[1] * chance.uniform(0.7, 1.0)) // 2 * 2
    resized = np.stack([cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA) for picture in pictures])
    sound = np.round(clip.sound[skip * SAMPLES_PER_FRAME :] * chance.uniform(0.5, 1.0)).astype(np.int16)
    return Planted(pictures=resized, sound=sound)


KINDS: dict[str, Plant] = {
    "frozen": _same_sound(_frozen),
    "letterboxed": _same_sound(_letterboxed),
    "logo": _same_sound(_logo),
    "subtitle": _same_sound(_subtitle),
    "picture in picture": _inset,
    "blur": _same_sound(_blur),
    "dark": _same_sound(_dark),
    "over-exposed": _same_sound(_overexposed),
    "flicker": _same_sound(_flicker),
    "colour cast": _same_sound(_colour_cast),
    "camera shake": _shake,
    "duplicate": _duplicate,
    "wrong audio": _same_pictures(_wrong_sound),
    "shifted audio": _same_pictures(_shifted_sound),
    "two faces": _two_faces,
    "no face": _same_sound(_no_face),
    "tiny face": _same_sound(_tiny_face),
    "hard cut": _hard_cut,
    "dissolve": _dissolve,
    "music only": _same_pictures(_music_only),
    "silence": _same_pictures(_silence),
    "sped up": _sped_up,
}
"""Every defect by its name."""
