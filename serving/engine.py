"""Engines turn two voices into frames: `FakeEngine` draws, `LpmEngine` runs the Online LPM of a model folder.

An engine is owned by one thread: `open`, `step` and `close` are never called from the event loop.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, SAMPLES_PER_FRAME, SAMPLES_PER_LATENT, VIDEO_FPS
from serving.characters import CharacterCard, list_characters, load_character, read_reference
from serving.config import ServingConfig
from serving.media.audio import Pcm, rms

if TYPE_CHECKING:
    from lpm_model.online import OnlineModel
    from lpm_model.state import OnlineState

Frames = NDArray[np.uint8]
_CLOSED = "this conversation is closed; open another one"


class EngineSession(Protocol):
    """One character in one conversation."""

    def step(self, speak: Pcm, listen: Pcm, text: str) -> Frames:
        """Generate one chunk.

        A pipelined model returns the frames of `pipeline_chunks` steps before, and none in the first steps.

        Args:
            speak: the character's voice, int16 [chunk + lookahead] from the chunk's first sample.
            listen: the user's voice, likewise.
            text: prompt that steers the performance; empty for none.

        Returns:
            uint8 [T, H, W, 3].
        """
        ...

    def flush(self) -> Frames:
        """Return the frames that are still in the pipeline, uint8 [T, H, W, 3]."""
        ...

    def close(self) -> None:
        """Free the session's memory."""
        ...


class Engine(Protocol):
    """A model that can hold conversations."""

    fps: int
    size_px: int
    sample_rate: int
    chunk_frames: int
    chunk_samples: int
    lookahead_samples: int
    pipeline_chunks: int
    model_uri: str
    model_digest: str

    def characters(self) -> list[str]:
        """Return the ids of the characters that can be opened."""
        ...

    def card(self, character_id: str) -> CharacterCard:
        """Return a character's card; raise ValueError for an unknown or a refused one."""
        ...

    def open(self, character_id: str, seed: int) -> EngineSession:
        """Start a conversation; the same seed and audio give the same frames."""
        ...


class FakeEngine:
    """Draws a face from circles whose mouth follows the speech and whose head nods to the user: no weights needed."""

    def __init__(
        self, size_px: int = 128, *, lookahead_samples: int = 0, chunk_latents: int = 1, pipeline_chunks: int = 0
    ) -> None:
        self.pipeline_chunks = pipeline_chunks
        self.fps, self.sample_rate = VIDEO_FPS, AUDIO_RATE
        self.size_px, self.lookahead_samples = size_px, lookahead_samples
        self.chunk_frames = chunk_latents * FRAMES_PER_LATENT
        self.chunk_samples = chunk_latents * SAMPLES_PER_LATENT
        self.model_uri, self.model_digest = "fake://drawn-face", "0" * 64

    def characters(self) -> list[str]:
        """Return the id of the drawn character."""
        return ["demo"]

    def card(self, character_id: str) -> CharacterCard:
        """Return the card of the drawn character, which shows no real person."""
        if character_id != "demo":
            raise ValueError(f"no character {character_id!r}; the fake engine has only demo")
        return CharacterCard(
            character_id="demo",
            name="Demo face",
            consent_ref="drawn, no real person is shown",
            reference=Path("reference.png"),
        )

    def open(self, character_id: str, seed: int) -> "FakeSession":
        """Start a conversation; the seed picks the colours."""
        self.card(character_id)
        return FakeSession(self.size_px, self.chunk_frames, seed, self.pipeline_chunks)


class FakeSession:
    """A drawn face with a running frame counter and smoothed audio levels."""

    def __init__(self, size_px: int, chunk_frames: int, seed: int, pipeline_chunks: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._skin = np.array([228, 182, 150], np.float32) + rng.integers(-14, 14, 3)
        self._wall = np.array([58, 84, 120], np.float32) + rng.integers(-20, 20, 3)
        axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1
        self._y, self._x = axis[:, None], axis[None, :]
        self._size, self._chunk_frames = size_px, chunk_frames
        self._frame, self._speak, self._listen = 0, 0.0, 0.0
        self._pipeline_chunks, self._pipeline = pipeline_chunks, np.zeros((0, size_px, size_px, 3), np.uint8)

    def step(self, speak: Pcm, listen: Pcm, text: str) -> Frames:
        """Draw one chunk of frames [T, H, W, 3]."""
        frames = np.empty((self._chunk_frames, self._size, self._size, 3), np.uint8)
        for index in range(self._chunk_frames):
            span = slice(index * SAMPLES_PER_FRAME, (index + 1) * SAMPLES_PER_FRAME)
            self._speak = 0.35 * self._speak + 0.65 * _loudness(speak[span])
            self._listen = 0.6 * self._listen + 0.4 * _loudness(listen[span])
            frames[index] = self._draw(smile=min(1.0, len(text) / 20))
            self._frame += 1
        pending = np.concatenate([self._pipeline, frames])
        ready = max(0, len(pending) - self._pipeline_chunks * self._chunk_frames)
        self._pipeline = pending[ready:]
        return pending[:ready]

    def flush(self) -> Frames:
        """Return the frames that are still in the pipeline, uint8 [T, H, W, 3]."""
        pending, self._pipeline = self._pipeline, self._pipeline[:0]
        return pending

    def close(self) -> None:
        """Nothing to free."""

    def _draw(self, smile: float) -> Frames:
        time = self._frame / VIDEO_FPS
        x = self._x - 0.03 * np.sin(0.9 * time)
        y = self._y - 0.02 * np.sin(1.7 * time) - 0.10 * self._listen * (1 + np.sin(9 * time)) / 2
        sway = 0.5 + 0.5 * np.sin(self._x * 2 + time) * np.cos(self._y * 3 - 0.6 * time)
        image = self._wall + 26 * sway[..., None]
        blink = 0.12 if self._frame % 84 < 4 else 1.0
        _fill(image, x**2 / 0.62**2 + (y + 0.16) ** 2 / 0.74**2, [46, 32, 30])
        _fill(image, x**2 / 0.62**2 + (y - 1.25) ** 2 / 0.55**2, [36, 104, 112])
        _fill(image, x**2 / 0.17**2 + (y - 0.68) ** 2 / 0.25**2, self._skin * 0.86)
        _fill(image, x**2 / 0.48**2 + (y - 0.04) ** 2 / 0.62**2, self._skin)
        for side in (-1, 1):
            brow = -0.26 - 0.06 * self._listen
            _fill(image, (x - side * 0.19) ** 2 / 0.12**2 + (y - brow) ** 2 / 0.022**2, [62, 44, 40])
            _fill(image, (x - side * 0.19) ** 2 / 0.09**2 + (y + 0.1) ** 2 / (0.062 * blink) ** 2, [248, 248, 246])
            gaze = 0.02 * np.sin(0.5 * time)
            _fill(image, (x - side * 0.19 - gaze) ** 2 / 0.036**2 + (y + 0.1) ** 2 / (0.045 * blink) ** 2, [58, 74, 96])
        _fill(image, (x - 0.01) ** 2 / 0.05**2 + (y - 0.12) ** 2 / 0.075**2, self._skin * 0.92)
        curve = y - 0.36 + (0.12 * self._listen + 0.1 * smile) * x**2 * 8
        _fill(image, x**2 / 0.20**2 + curve**2 / (0.035 + 0.16 * self._speak) ** 2, [178, 82, 84])
        _fill(image, x**2 / 0.16**2 + curve**2 / (0.004 + 0.12 * self._speak) ** 2, [74, 22, 30])
        return image.clip(0, 255).astype(np.uint8)


def _fill(image: NDArray[np.floating], field: NDArray[np.floating], colour: object) -> None:
    """Blend a colour where the implicit shape is inside (field < 1), with a soft edge."""
    inside = np.clip((1.0 - field) * 8.0, 0.0, 1.0)[..., None]
    image += inside * (np.asarray(colour, np.float32) - image)


def _loudness(pcm: Pcm) -> float:
    return min(1.0, 6.0 * rms(pcm))


class LpmEngine:
    """The Online LPM of a model folder."""

    def __init__(self, folder: Path, config: ServingConfig) -> None:
        from lpm_model.digests import model_digest
        from lpm_model.online import load_online

        self._folder, self._require_consent = folder, config.require_consent
        self._model = load_online(folder)
        self._model.accelerate(float8=config.float8, compile=config.compile)
        self.fps, self.sample_rate = VIDEO_FPS, AUDIO_RATE
        self.size_px = int(self._model.size_px)
        self.chunk_frames = int(self._model.chunk_frames)
        self.chunk_samples = int(self._model.chunk_samples)
        self.lookahead_samples = int(self._model.lookahead_samples)
        self.pipeline_chunks = self._model.online.pipeline_chunks
        self.model_uri = folder.resolve().as_uri()
        self.model_digest = model_digest(folder)
        if not self.characters():
            raise ValueError(
                f"{folder} has no character that can be shown; add characters/<id>/character.json with consent_ref"
            )

    def characters(self) -> list[str]:
        """Return the ids of the characters with a consent_ref, or all where the config does not require one."""
        return [name for name in list_characters(self._folder) if self._allowed(name)]

    def card(self, character_id: str) -> CharacterCard:
        """Return a character's card; raise ValueError for an unknown one and for one without consent_ref."""
        return load_character(self._folder, character_id, require_consent=self._require_consent)

    def open(self, character_id: str, seed: int) -> "LpmSession":
        """Encode the character image and start a conversation."""
        image = read_reference(self.card(character_id), self.size_px)
        return LpmSession(self._model, image, seed)

    def _allowed(self, character_id: str) -> bool:
        try:
            self.card(character_id)
        except ValueError:
            return False
        return True


class LpmSession:
    """One conversation of the Online LPM; all its memory is one state value."""

    def __init__(self, model: "OnlineModel", image: Frames, seed: int) -> None:
        self._model = model
        self._state: OnlineState | None = model.init_state(model.character(image, []), batch=1, seed=seed)

    def step(self, speak: Pcm, listen: Pcm, text: str) -> Frames:
        """Generate one chunk of frames [T, H, W, 3]."""
        import torch

        if self._state is None:
            raise ValueError(_CLOSED)
        own, user = (torch.from_numpy(pcm.astype(np.float32) / 32768.0)[None] for pcm in (speak, listen))
        frames, self._state = self._model.step(self._state, own, user, [text] if text else None)
        return np.asarray(frames[0], dtype=np.uint8)

    def flush(self) -> Frames:
        """Return the frames that are still in the pipeline, uint8 [T, H, W, 3]."""
        if self._state is None:
            raise ValueError(_CLOSED)
        frames, self._state = self._model.flush(self._state)
        return np.asarray(frames[0], dtype=np.uint8)

    def close(self) -> None:
        """Free the caches."""
        self._state = None


def make_engine(kind: str, model_dir: Path | None, config: ServingConfig | None = None) -> Engine:
    """Create an engine by name.

    Args:
        kind: `lpm` or `fake`.
        model_dir: folder of an Online LPM.
        config: whether characters need a consent_ref, and how the model runs.

    Raises:
        ValueError: the name is unknown, or `lpm` has no model folder.
    """
    if kind == "fake":
        return FakeEngine()
    if kind != "lpm":
        raise ValueError(f"unknown engine {kind!r}; choose lpm or fake")
    # Leave one core to the event loop and the video encoder: with all of them, a step waits for the thread that shares
    # its core (0.93 s instead of 0.62 s per second of video on two cores), and threads that spin while waiting make it
    # worse. The OpenMP runtime reads both variables when torch loads it, which happens after this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) - 1)))
    if model_dir is None or not (model_dir / "config.json").is_file():
        raise ValueError(
            f"{model_dir} is not a model folder (config.json is missing): give the folder that deploy wrote"
        )
    return LpmEngine(model_dir, config or ServingConfig())
