"""Rendered conversations with ground truth for the label benchmark: rendered and analysed once, then cached."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.labels.speech import loudness_db, speech_probability
from components.curate.run import analyse
from components.curate.run.analysis_file import load_analysis, save_analysis
from components.curate.video import decode, faces, shots
from components.curate.video.analysis import Analysis
from components.dataset.sources import Source
from components.dataset.states import LISTEN, SPEAK
from components.performer.compose import Recording, render_corpus
from components.performer.config import PerformerConfig
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME
from lpm_model.digests import file_digest
from lpm_model.progress import Progress

Bank = Literal["train", "heldout"]
Layout = Literal["two cameras", "one camera", "two people in one shot"]
LAYOUTS: tuple[Layout, ...] = ("two cameras", "one camera", "two people in one shot")
SECONDS = 20.0
CONDITIONS = ("clean", "noise 20 dB", "noise 10 dB", "noise 5 dB", "music 20 dB", "music 10 dB", "music 5 dB")
"""Audio that is added, with the speech-to-noise power ratio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """One conversation at one size."""

    size_px: int
    """Frame height."""
    cameras: dict[str, Analysis]
    """Analysis of each recording: a, b and two_shot."""
    ground_truth: dict[str, dict[str, NDArray[Any]]]
    """Ground-truth arrays of a and b, by name."""


def takes(
    cache: Path, bank: Bank, counts: dict[int, int], progress: Progress, *, seed: int = 40
) -> list[Take]:  # fmt: skip
    """Render and analyse the given number of conversations per size, or read them from the cache."""
    found = []
    for size_px, count in counts.items():
        config = PerformerConfig(
            conversations=count, seconds_per_conversation=SECONDS, seed=seed + size_px // 128, bank=bank,
            size_px=size_px, workers=1,
        )  # fmt: skip
        home = cache / f"{bank}-{size_px}"
        recordings = render_corpus(home / "media", config, progress, home / "truth")
        for name in dict.fromkeys(recording.conversation_id for recording in recordings):
            own = [recording for recording in recordings if recording.conversation_id == name]
            ground_truth = {side: _ground_truth(home / "truth" / f"{name}_{side}.npz") for side in "ab"}
            cameras = {str(recording.camera): _analysis(recording, home / "analysis") for recording in own}
            found.append(Take(size_px=size_px, cameras=cameras, ground_truth=ground_truth))
    return found


def _ground_truth(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as data:
        names = ("state", "jaw_open", "rotation", "speak_pcm", "identity_seed")
        return {name: data[name] for name in names}


def _analysis(recording: Recording, folder: Path) -> Analysis:
    """Analyse a recording, again whenever the analysing code or the recording has changed."""
    code = "".join(file_digest(Path(str(module.__file__))) for module in (analyse, decode, faces, shots))
    key = hashlib.sha256((code + file_digest(recording.file)).encode()).hexdigest()[:16]
    cached = folder / f"{recording.file.stem}-{key}.npz"
    if not cached.exists():
        source = Source(
            source_id=recording.file.stem, file=recording.file.name, sha256="", bytes=0, origin="performer", licence="",
            consent_ref="", conversation_id=recording.conversation_id, camera=recording.camera,
        )  # fmt: skip
        save_analysis(cached, analyse.analyse(recording.file.parent, source, CurationConfig()))
    return load_analysis(cached)


def with_noise(take: Take, condition: str) -> Take:
    """Add noise or music to every microphone of a conversation."""
    if condition == "clean":
        return take
    kind, ratio = condition.split()[0], float(condition.split()[1])
    speaking = np.isin(take.ground_truth["a"]["state"], (SPEAK, LISTEN))
    cameras = {}
    for name, analysis in take.cameras.items():
        # Music comes from one source in the room; noise is independent per microphone.
        place = analysis.source.conversation_id if kind == "music" else analysis.source.source_id
        seed = int(hashlib.sha256(str(place).encode()).hexdigest()[:8], 16)
        added = (music if kind == "music" else pink)(len(analysis.track), seed)
        cameras[name] = with_audio(analysis, mix(analysis.track, added, speaking, ratio))
    return replace(take, cameras=cameras)


def with_audio(analysis: Analysis, track: NDArray[np.int16]) -> Analysis:
    """Replace the audio of an analysis."""
    return replace(analysis, track=track, speech=speech_probability(track), loudness=loudness_db(track))


def shifted(track: NDArray[np.int16], frames: int) -> NDArray[np.int16]:
    """Delay audio by `frames` (advance if negative), padded with silence."""
    out = np.zeros_like(track)
    by = frames * SAMPLES_PER_FRAME
    if by > 0:
        out[by:] = track[:-by]
    elif by < 0:
        out[:by] = track[-by:]
    else:
        out[:] = track
    return out


def mix(
    track: NDArray[np.int16], added: NDArray[np.float32], speaking: NDArray[np.bool_], ratio_db: float
) -> NDArray[np.int16]:
    """Add audio so that speech (while somebody speaks) is `ratio_db` above it."""
    active = np.repeat(speaking, SAMPLES_PER_FRAME)[: len(track)]
    voice = float(np.sqrt(np.mean(track[: len(active)][active].astype(np.float64) ** 2)))
    level = float(np.sqrt(np.mean(added.astype(np.float64) ** 2)))
    gain = voice / max(level, 1e-9) * 10 ** (-ratio_db / 20)
    return np.clip(np.round(track + gain * added), -32768, 32767).astype(np.int16)


def pink(samples: int, seed: int) -> NDArray[np.float32]:
    """Noise whose power falls by 3 dB per octave above 50 Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=samples))
    at = np.fft.rfftfreq(samples, 1 / AUDIO_RATE)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(at, 50.0)), samples).astype(np.float32)


def music(samples: int, seed: int) -> NDArray[np.float32]:
    """Chords, a melody and a beat: decaying notes with harmonics, and decaying noise."""
    chance = np.random.default_rng(seed)
    out = np.zeros(samples + 2 * AUDIO_RATE, np.float32)
    beat = int(AUDIO_RATE * chance.uniform(0.4, 0.6))
    root = 110.0 * 2 ** (int(chance.integers(12)) / 12)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    time_s = np.arange(2 * AUDIO_RATE) / AUDIO_RATE
    for count, start in enumerate(range(0, samples, beat)):
        degree = int(chance.integers(6))
        chord = [scale[degree], scale[(degree + 2) % 7], scale[(degree + 4) % 7]] if count % 4 == 0 else []
        for note in [*chord, 12 + int(chance.choice(scale))]:
            tone = root * 2 ** (note / 12)
            wave = sum(np.sin(2 * np.pi * k * tone * time_s) / k**1.3 for k in range(1, 7))
            out[start : start + len(time_s)] += np.asarray(wave * np.exp(-time_s * chance.uniform(2, 5)), np.float32)
        hit = chance.normal(size=len(time_s)) * np.exp(-time_s * 30) * (0.8 if count % 2 else 1.5)
        out[start : start + len(time_s)] += hit.astype(np.float32)
    return out[:samples]
