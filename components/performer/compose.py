"""Renders conversations of two people to ordinary MP4 files, with ground truth in a separate folder."""

import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from components.performer.behaviour import Animation, animate
from components.performer.config import PerformerConfig
from components.performer.dialogue import Line, write_script
from components.performer.media import write_mp4
from components.performer.phones import Phone
from components.performer.voices import VOICES, speak
from components.runtime.cache_keys import code_digest, config_digest, package_versions
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS, result_settings
from lpm_model.digests import file_digest
from lpm_model.files import write_json
from lpm_model.progress import Progress

if TYPE_CHECKING:
    from components.performer.identity import Identity

HELDOUT_PEOPLE: Final = 100_000
"""First identity seed of the benchmark's people; those for training come before it."""
VOICE_CREDIT: Final = (
    "Voices: hibari by Maureese Williams (Apache-2.0; distilled from Kokoro-82M by hexgrad, Apache-2.0; lexica of "
    "misaki, Apache-2.0) and Piper's en_US-joe (package MIT; recordings CC0-1.0; fine-tuned from the voice lessac, "
    "whose recordings are licensed for research)."
)
"""Credit in the licence field of every recording."""
_PARTNER_GAIN: Final = 0.5  # gain of the partner's voice in a side's recording
_FADE_SAMPLES: Final = 480  # 20 ms, where a line is cut off
_SIDES: Final = ("a", "b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One MP4 file of a conversation."""

    file: Path
    """Path."""
    conversation_id: str
    """Shared by its three files."""
    camera: Literal["a", "b", "two_shot"]
    """Who is visible."""
    identity_seeds: tuple[int, ...]
    """Visible people, from left to right."""
    frames: int
    """Number of frames at 24 fps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """The speech of one person in a conversation."""

    pcm: NDArray[np.int16]
    """[samples] own speech alone, on the conversation's time base."""
    phones: tuple[Phone, ...]
    """Its phones on the same time base."""
    text: str
    """Text of all lines."""
    emotions: tuple[str, ...]
    """Emotion of each frame."""


def render_corpus(
    out: Path, config: PerformerConfig, progress: Progress, ground_truth: Path | None = None
) -> list[Recording]:
    """Render conversations: `<id>_a.mp4`, `<id>_b.mp4` and optionally `<id>_two_shot.mp4`, each with its sidecar.

    Finished conversations of the same config are reused, so an interrupted call resumes.

    Args:
        out: folder for the recordings.
        config: number, length and people.
        progress: progress bar.
        ground_truth: folder for `<id>_a.npz` and `<id>_b.npz` (motion, states, each voice alone); None = not
            written.

    Returns:
        The recordings, ordered by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    if ground_truth is not None:
        ground_truth.mkdir(parents=True, exist_ok=True)
    pending = [index for index in range(config.conversations) if not _finished(out, ground_truth, config, index)]
    done, total = config.conversations - len(pending), config.conversations
    for _ in progress.track(
        _render_all(out, config, ground_truth, pending), "render conversations", total=total, done=done
    ):
        continue
    recordings = [one for index in range(config.conversations) for one in recordings_of(out, config, index)]
    _write_sidecars(out, config, recordings)
    return recordings


def conversation_id(config: PerformerConfig, index: int) -> str:
    """Return the name of a conversation, for example "train-00-003"."""
    return f"{config.bank}-{config.seed:02d}-{index:03d}"


def identity_seeds(config: PerformerConfig, index: int) -> tuple[int, int]:
    """Return the identity seeds of people a and b; no two conversations share one."""
    first = (HELDOUT_PEOPLE if config.bank == "heldout" else 0) + config.seed * 2_000 + 2 * index
    return first, first + 1


def recordings_of(out: Path, config: PerformerConfig, index: int) -> list[Recording]:
    """List the two or three files of a conversation."""
    name, people = conversation_id(config, index), identity_seeds(config, index)
    cameras: tuple[tuple[Literal["a", "b", "two_shot"], tuple[int, ...]], ...] = (
        ("a", people[:1]), ("b", people[1:]), ("two_shot", people)
    )  # fmt: skip
    return [
        Recording(
            file=out / f"{name}_{camera}.mp4",
            conversation_id=name,
            camera=camera,
            identity_seeds=seeds,
            frames=_frames(config),
        )
        for camera, seeds in cameras
        if camera != "two_shot" or config.two_shots
    ]


def conversation(config: PerformerConfig, index: int) -> tuple[dict[str, Side], dict[str, Animation]]:
    """Return speech and motion of a conversation by side, without rendering frames."""
    frames = _frames(config)
    seed = config.seed * 10_007 + index * 2 + (1_000_003 if config.bank == "heldout" else 0)
    voices = dict(zip(_SIDES, _voices(config, index), strict=True))

    def length(side: str, text: str) -> int:
        return len(speak(text, voices[side]).pcm)

    lines = write_script(seed, frames / VIDEO_FPS, config.bank, length)
    sides = {side: _place_lines(lines, side, voices[side], frames) for side in _SIDES}
    people = dict(zip(_SIDES, identity_seeds(config, index), strict=True))
    animations = {
        side: animate(sides[side].pcm, sides[side].phones, sides[other].pcm, sides[side].emotions, people[side], frames)
        for side, other in (("a", "b"), ("b", "a"))
    }
    return sides, animations


def _render_all(out: Path, config: PerformerConfig, ground_truth: Path | None, pending: list[int]) -> Iterable[int]:
    if config.workers == 1 or len(pending) < 2:
        for index in pending:
            yield _render_conversation(out, config, ground_truth, index)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.workers, len(pending)), mp_context=context, initializer=_one_thread) as pool:
        tasks = [pool.submit(_render_conversation, out, config, ground_truth, index) for index in pending]
        for task in as_completed(tasks):
            yield task.result()


def _one_thread() -> None:
    """Limit a worker to one thread; must run before the numeric libraries are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"


def _render_conversation(out: Path, config: PerformerConfig, ground_truth: Path | None, index: int) -> int:
    """Render and write one conversation; its completion marker is written last."""
    from components.performer.identity import Identity
    from components.performer.renderer import Renderer

    people = [Identity.from_seed(seed) for seed in identity_seeds(config, index)]
    sides, animations = conversation(config, index)
    renderer = Renderer(config.size_px, head=config.head)
    videos = [renderer.render(person, animations[side].tracks) for person, side in zip(people, _SIDES, strict=True)]
    own = [sides[side].pcm.astype(np.float32) for side in _SIDES]
    audio = {
        "a": own[0] + _PARTNER_GAIN * own[1], "b": own[1] + _PARTNER_GAIN * own[0], "two_shot": own[0] + own[1]
    }  # fmt: skip
    video = {"a": videos[0], "b": videos[1], "two_shot": np.concatenate(videos, axis=2)}
    for recording in recordings_of(out, config, index):
        pcm = np.clip(np.round(audio[recording.camera]), -32768, 32767).astype(np.int16)
        write_mp4(recording.file, video[recording.camera], pcm, config.crf)
    name = conversation_id(config, index)
    if ground_truth is not None:
        for side, other in (("a", "b"), ("b", "a")):
            seed = identity_seeds(config, index)[_SIDES.index(side)]
            _write_ground_truth(ground_truth / f"{name}_{side}.npz", animations[side], sides[side], sides[other], seed)
    write_json(_completion_marker(out, config, index), {"digest": _digest(config, index), "conversation_id": name})
    return index


def _frames(config: PerformerConfig) -> int:
    return round(config.seconds_per_conversation * VIDEO_FPS)


def _voices(config: PerformerConfig, index: int) -> tuple[str, str]:
    """Choose two different voices that fit the two people."""
    from components.performer.identity import Identity

    rng = np.random.default_rng([config.seed, index, 11])
    offered = config.voices or VOICES
    chosen: list[str] = []
    for seed in identity_seeds(config, index):
        base = _base_voice(Identity.from_seed(seed))
        free = [voice for voice in offered if voice not in chosen]
        fitting = [voice for voice in free if voice.startswith(base)] or free
        chosen.append(str(rng.choice(fitting)))
    return chosen[0], chosen[1]


def _base_voice(person: "Identity") -> str:
    """Return the packaged voice that suits a face."""
    heavy = person.trait("brow_ridge") + person.trait("neck_width") + person.trait("jaw_width")
    return "joe" if person.beard != "none" or heavy > 0 else "hibari"


def _place_lines(lines: list[Line], side: str, voice: str, frames: int) -> Side:
    """Place the lines of a side on the conversation's time base."""
    total = frames * SAMPLES_PER_FRAME
    waveform = np.zeros(total, np.float32)
    phones: list[Phone] = []
    emotions = ["neutral"] * frames
    texts = []
    for line in (one for one in lines if one.side == side):
        speech = speak(line.text, voice)
        wave = speech.pcm[: line.length_samples].astype(np.float32) * line.gain
        if line.length_samples < len(speech.pcm):
            wave[-_FADE_SAMPLES:] *= np.linspace(1.0, 0.0, _FADE_SAMPLES)
        waveform[line.start_sample : line.start_sample + len(wave)] += wave
        phones += [
            Phone(phone.symbol, phone.start_sample + line.start_sample, phone.end_sample + line.start_sample)
            for phone in speech.phones
            if phone.end_sample <= line.length_samples
        ]
        first = max(0, line.start_sample // SAMPLES_PER_FRAME - VIDEO_FPS // 4)
        last = min(frames, line.end_sample // SAMPLES_PER_FRAME + VIDEO_FPS // 2)
        emotions[first:last] = [line.emotion] * (last - first)
        texts.append(line.text)
    pcm = np.clip(np.round(waveform), -32768, 32767).astype(np.int16)
    return Side(
        pcm=pcm,
        phones=tuple(sorted(phones, key=lambda p: p.start_sample)),
        text=" ".join(texts),
        emotions=tuple(emotions),
    )


def _write_ground_truth(path: Path, animation: Animation, own: Side, other: Side, identity_seed: int) -> None:
    from components.performer.tracks import ARKIT_INDEX

    tracks = animation.tracks
    partial = path.with_name(f".{path.stem}.partial.npz")
    np.savez_compressed(
        partial,
        jaw_open=tracks.blendshapes[:, ARKIT_INDEX["jawOpen"]],
        blendshapes=tracks.blendshapes,
        rotation=tracks.rotation,
        translation=tracks.translation,
        gaze=tracks.gaze,
        state=animation.state,
        nod=animation.nod,
        smile=animation.smile,
        speak_pcm=own.pcm,
        listen_pcm=other.pcm,
        identity_seed=np.int64(identity_seed),
        text=np.str_(own.text),
        emotion=np.asarray(own.emotions),
        phones=np.asarray([phone.symbol for phone in own.phones]),
        phone_samples=np.asarray([phone[1:] for phone in own.phones], np.int64).reshape(-1, 2),
    )
    os.replace(partial, path)


def _digest(config: PerformerConfig, index: int) -> str:
    """Return the cache key of a conversation: settings, code and packages that shape its files."""
    values = result_settings(config, ignore=("assembly",))
    values["head"] = file_digest(Path(config.head)) if config.head else ""
    environment = {"code": code_digest(__name__), "packages": package_versions(__name__)}
    return config_digest({"index": index, **environment, **values})


def _completion_marker(out: Path, config: PerformerConfig, index: int) -> Path:
    return out / ".finished" / f"{conversation_id(config, index)}.json"


def _finished(out: Path, ground_truth: Path | None, config: PerformerConfig, index: int) -> bool:
    mark = _completion_marker(out, config, index)
    name = conversation_id(config, index)
    files = [recording.file for recording in recordings_of(out, config, index)]
    files += [ground_truth / f"{name}_{side}.npz" for side in _SIDES] if ground_truth is not None else []
    if not mark.is_file() or not all(file.is_file() for file in files):
        return False
    return bool(json.loads(mark.read_text())["digest"] == _digest(config, index))


def _write_sidecars(out: Path, config: PerformerConfig, recordings: list[Recording]) -> None:
    """Write `consent.yaml` for the folder, and a sidecar per file that also names camera and person."""
    from components.performer.rig import load_rig

    consent = {
        "licence": f"Rendered people; parts by others: {load_rig(config.head).credit} {VOICE_CREDIT}",
        "consent_ref": "synthetic",
    }
    (out / "consent.yaml").write_text(yaml.safe_dump(consent, sort_keys=False, width=1000), encoding="utf-8")
    for recording in recordings:
        sidecar = {**consent, "conversation_id": recording.conversation_id, "camera": recording.camera}
        if len(recording.identity_seeds) == 1:
            sidecar["person_hint"] = f"performer-{recording.identity_seeds[0]}"
        path = recording.file.with_name(f"{recording.file.name}.yaml")
        path.write_text(yaml.safe_dump(sidecar, sort_keys=False, width=1000), encoding="utf-8")
