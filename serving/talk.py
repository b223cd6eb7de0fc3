"""Renders a whole conversation: two sounds and a character image in, one MP4 with the character and both voices out.

The sound streams through the Online LPM step by step, so memory and the time per second stay the same at any length.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from lpm_model.config import FRAMES_PER_LATENT, SAMPLES_PER_FRAME, SAMPLES_PER_LATENT, VIDEO_FPS
from lpm_model.progress import Progress
from serving.media.mp4 import Frames, Mp4Writer, Samples, SoundReader, read_picture, square

T = TypeVar("T")

log = logging.getLogger(__name__)

_NOTHING: Samples = np.zeros(0, np.int16)


class Source(Protocol):
    """Gives samples piece by piece; silence past its end."""

    @property
    def expected_samples(self) -> int:
        """How long it says it is."""
        ...

    def read(self, count: int) -> tuple[Samples, int]:
        """Int16 [count] and how many of them are true ones."""
        ...

    def everything(self) -> Samples:
        """All that is left, int16."""
        ...


class OnlineLPM(Protocol):
    """What is needed of `lpm_model.online.OnlineModel`."""

    @property
    def chunk_samples(self) -> int: ...
    @property
    def lookahead_samples(self) -> int: ...
    @property
    def size_px(self) -> int: ...
    def character(self, image: Any, references: Any = ...) -> Any: ...
    def init_state(self, character: Any, batch: int = ..., seed: int = ...) -> Any: ...
    def step(self, state: Any, speak: Any, listen: Any, text: Any = ...) -> tuple[Any, Any]: ...
    def flush(self, state: Any) -> tuple[Any, Any]: ...


class ArraySource:
    """An int16 array that is read like a file."""

    def __init__(self, samples: Samples) -> None:
        self._samples, self._at = samples, 0
        self.expected_samples = samples.size

    def read(self, count: int) -> tuple[Samples, int]:
        piece = self._samples[self._at : self._at + count]
        self._at += piece.size
        return np.pad(piece, (0, count - piece.size)), piece.size

    def everything(self) -> Samples:
        return self._samples[self._at :]


@dataclass(frozen=True, kw_only=True, slots=True)
class TalkReport:
    """What was rendered."""

    frames: int
    """Frames of the video."""
    seconds: float
    """Length of the video."""
    path: Path
    """The MP4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What one step of the model made."""

    frames: Frames
    """uint8 [n, H, W, 3]."""
    speak: Samples
    """int16 [1000 n]: the character's own voice under these frames."""
    listen: Samples
    """int16 [1000 n]: the other's voice under these frames."""


class _Window:
    """The chunk and its look-ahead out of a source, advancing by one chunk."""

    def __init__(self, source: Source, chunk: int, lookahead: int) -> None:
        self._source, self._chunk = source, chunk
        self._held, self._true = source.read(lookahead)

    def next(self) -> tuple[Samples, int]:
        """Int16 [chunk + lookahead] and how many samples of its chunk part are true."""
        fresh, true = self._source.read(self._chunk)
        window = np.concatenate([self._held, fresh])
        available = self._true + true
        self._held, taken = window[self._chunk :], min(self._chunk, available)
        self._true = available - taken
        return window, taken


def stream(
    model: OnlineLPM, character: Any, speak: Source, listen: Source, *, text: str = "", seed: int = 0
) -> Iterator[Chunk]:
    """Run the model over two sounds until both end.

    Args:
        model: the Online LPM.
        character: from `model.character`.
        speak: the character's own voice.
        listen: the other's voice.
        text: what the character should do, in words.
        seed: of the model's noise.

    Yields:
        Chunks; the last is cut to the frames that the longer sound reaches.
    """
    chunk, ahead = model.chunk_samples, model.lookahead_samples
    own, other = _Window(speak, chunk, ahead), _Window(listen, chunk, ahead)
    state = model.init_state(character, batch=1, seed=seed)
    heard: deque[tuple[Samples, Samples]] = deque()  # more than one chunk only where the model is pipelined
    count = chunk // SAMPLES_PER_FRAME
    while count * SAMPLES_PER_FRAME == chunk:
        (own_samples, own_true), (other_samples, other_true) = own.next(), other.next()
        count = math.ceil(max(own_true, other_true) / SAMPLES_PER_FRAME)
        if not count:
            break
        frames, state = model.step(state, _waveform(own_samples), _waveform(other_samples), [text] if text else None)
        samples = count * SAMPLES_PER_FRAME
        heard.append((own_samples[:samples], other_samples[:samples]))
        if frames.shape[1]:
            yield _shown(frames, *heard.popleft())
    if heard:
        frames, _ = model.flush(state)
        for piece, voices in zip(np.split(np.asarray(frames), len(heard), axis=1), heard, strict=True):
            yield _shown(piece, *voices)


def _shown(frames: Any, speak: Samples, listen: Samples) -> Chunk:
    """Frames [1, n, H, W, 3] under their voices, which may be shorter."""
    return Chunk(frames=np.asarray(frames[0], np.uint8)[: speak.size // SAMPLES_PER_FRAME], speak=speak, listen=listen)


def offline(
    base: Any, character: Any, speak: Source, listen: Source, *, text: str = "", seed: int = 0
) -> Iterator[Chunk]:
    """Run a Base LPM over two whole sounds; one chunk with everything, or none where both are empty."""
    from lpm_model.sampler import sample_base

    voices = [reader.everything() for reader in (speak, listen)]
    count = math.ceil(max(voice.size for voice in voices) / SAMPLES_PER_FRAME)
    if not count:
        return
    size = math.ceil(count / FRAMES_PER_LATENT) * SAMPLES_PER_LATENT
    mouth, ear = (np.pad(voice, (0, size - voice.size)) for voice in voices)
    frames = sample_base(base, character, _waveform(mouth), _waveform(ear), [text] if text else None, seed=seed)
    samples = count * SAMPLES_PER_FRAME
    yield _shown(frames, mouth[:samples], ear[:samples])


def _character(model: Any, image: Path | Frames) -> Any:
    size = model.size_px
    return model.character(read_picture(image, size) if isinstance(image, Path) else square(image, size))


def _waveform(samples: Samples) -> Any:
    import torch

    return torch.from_numpy(samples.astype(np.float32) / 32768)[None]


def mix(speak: Samples, listen: Samples) -> Samples:
    """Both voices in one int16 track, clipped at full scale."""
    total: npt.NDArray[np.int32] = speak.astype(np.int32) + listen.astype(np.int32)
    return np.clip(total, -32768, 32767).astype(np.int16)


def write_chunks(chunks: Iterable[Chunk], out: Path, *, size_px: int) -> TalkReport:
    """Write chunks as they come into an MP4 whose sound is the mix of both voices.

    Raises:
        KeyboardInterrupt: with what the file holds, which is kept.
    """
    writer = Mp4Writer(out, height_px=size_px, width_px=size_px, keep_interrupted=True)
    try:
        with writer:
            for chunk in chunks:
                writer.write(chunk.frames, mix(chunk.speak, chunk.listen))
    except KeyboardInterrupt as error:
        held = f"{out} holds the {writer.frames_written / VIDEO_FPS:.1f} s until then"
        raise KeyboardInterrupt(held if writer.frames_written else "nothing was written") from error
    frames = writer.frames_written
    return TalkReport(frames=frames, seconds=frames / VIDEO_FPS, path=out)


def render_conversation(
    model_dir: Path,
    image: Path | Frames,
    speak_wav: Path | None,
    listen_wav: Path | None,
    out: Path,
    text: str = "",
    *,
    online: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> TalkReport:
    """Render the character of a picture speaking one sound while listening to another.

    Args:
        model_dir: folder of an Online LPM, or of a Base LPM.
        image: the character: a picture file or uint8 [H, W, 3]; its centre square is used.
        speak_wav: what the character says; any sound file, any rate, any length. None is silence.
        listen_wav: what the character hears, likewise; the shorter of the two is followed by silence.
        out: the MP4 to write (H.264 + AAC).
        text: what the character should do, in words.
        online: stream, at any length in constant memory; False looks both ways over the whole, which is all kept.
        seed: of the model's noise.
        progress: shows how far it is.

    Raises:
        ValueError: a file is missing, carries no sound, or the picture is unreadable or too large.
    """
    given = [str(sound) for sound in (speak_wav, listen_wav) if sound]
    if not given:
        raise ValueError("there is nothing to say or to hear: give at least one sound file, to speak or to listen to")
    speak, listen = (SoundReader(sound) if sound else ArraySource(_NOTHING) for sound in (speak_wav, listen_wav))
    longest = max(speak.expected_samples, listen.expected_samples)
    model: Any
    if online:
        from lpm_model.online import load_online

        model = load_online(model_dir)
        chunks = stream(model, _character(model, image), speak, listen, text=text, seed=seed)
        steps = math.ceil(longest / model.chunk_samples)
    else:
        from lpm_model.sampler import load_base

        model = load_base(model_dir)
        chunks, steps = offline(model, _character(model, image), speak, listen, text=text, seed=seed), 1
    first = next(chunks, None)
    if first is None:
        raise ValueError(f"{' and '.join(given)} hold no sound: give at least one frame (1/24 s) to say or to hear")
    everything: Iterable[Chunk] = itertools.chain([first], chunks)
    if progress is not None:
        everything = progress.track(everything, "talk", max(1, steps))
    report = write_chunks(everything, out, size_px=model.size_px)
    log.info("wrote %s: %.1f s", out, report.seconds)
    return report
