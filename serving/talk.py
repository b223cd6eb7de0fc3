"""Render a whole conversation: two audio files and a character image in, one MP4 with both voices out.

The audio streams through the Online LPM step by step, so memory and the cost per second do not depend on its length.
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
from serving.media.image import centre_square, read_image
from serving.media.mp4 import AudioReader, Frames, Mp4Writer, Samples

T = TypeVar("T")

log = logging.getLogger(__name__)

_NO_AUDIO: Samples = np.zeros(0, np.int16)


class AudioSource(Protocol):
    """Yields samples block by block; silence past its end."""

    @property
    def expected_samples(self) -> int:
        """Length according to the file's header."""
        ...

    def read(self, count: int) -> tuple[Samples, int]:
        """Return int16 [count] and how many of them are not padding."""
        ...

    def read_all(self) -> Samples:
        """Return all remaining samples, int16 [n]."""
        ...


class OnlineLPM(Protocol):
    """The part of `lpm_model.online.OnlineModel` that rendering uses."""

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
    """An int16 array with the interface of a file."""

    def __init__(self, samples: Samples) -> None:
        self._samples, self._at = samples, 0
        self.expected_samples = samples.size

    def read(self, count: int) -> tuple[Samples, int]:
        block = self._samples[self._at : self._at + count]
        self._at += block.size
        return np.pad(block, (0, count - block.size)), block.size

    def read_all(self) -> Samples:
        return self._samples[self._at :]


@dataclass(frozen=True, kw_only=True, slots=True)
class TalkReport:
    """Summary of a rendered conversation."""

    frames: int
    """Frames of the video."""
    seconds: float
    """Length of the video."""
    path: Path
    """The MP4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Output of one model step."""

    frames: Frames
    """uint8 [n, H, W, 3]."""
    speak: Samples
    """int16 [1000 n]: the character's voice during these frames."""
    listen: Samples
    """int16 [1000 n]: the partner's voice during these frames."""


class _Window:
    """Sliding window over a source: a chunk and its look-ahead, advancing by one chunk."""

    def __init__(self, source: AudioSource, chunk: int, lookahead: int) -> None:
        self._source, self._chunk = source, chunk
        self._buffer, self._available = source.read(lookahead)

    def next(self) -> tuple[Samples, int]:
        """Return int16 [chunk + lookahead] and how many samples of its chunk part are not padding."""
        fresh, count = self._source.read(self._chunk)
        window = np.concatenate([self._buffer, fresh])
        available = self._available + count
        self._buffer, taken = window[self._chunk :], min(self._chunk, available)
        self._available = available - taken
        return window, taken


def stream(
    model: OnlineLPM, character: Any, speak: AudioSource, listen: AudioSource, *, text: str = "", seed: int = 0
) -> Iterator[Chunk]:
    """Run the model over two audio sources until both end.

    Args:
        model: the Online LPM.
        character: from `model.character`.
        speak: the character's own voice.
        listen: the partner's voice.
        text: prompt that steers the performance.
        seed: seed of the model's noise.

    Yields:
        Chunks; the last is cut to the frames that the longer source covers.
    """
    chunk, ahead = model.chunk_samples, model.lookahead_samples
    speak_window, listen_window = _Window(speak, chunk, ahead), _Window(listen, chunk, ahead)
    state = model.init_state(character, batch=1, seed=seed)
    pending: deque[tuple[Samples, Samples]] = deque()  # audio whose frames are due; over one chunk if pipelined
    count = chunk // SAMPLES_PER_FRAME
    while count * SAMPLES_PER_FRAME == chunk:
        (speak_samples, speak_count), (listen_samples, listen_count) = speak_window.next(), listen_window.next()
        count = math.ceil(max(speak_count, listen_count) / SAMPLES_PER_FRAME)
        if not count:
            break
        frames, state = model.step(state, _waveform(speak_samples), _waveform(listen_samples), [text] if text else None)
        samples = count * SAMPLES_PER_FRAME
        pending.append((speak_samples[:samples], listen_samples[:samples]))
        if frames.shape[1]:
            yield _chunk_of(frames, *pending.popleft())
    if pending:
        frames, _ = model.flush(state)
        for part, voices in zip(np.split(np.asarray(frames), len(pending), axis=1), pending, strict=True):
            yield _chunk_of(part, *voices)


def _chunk_of(frames: Any, speak: Samples, listen: Samples) -> Chunk:
    """Pair frames [1, n, H, W, 3] with their voices, which may be shorter."""
    return Chunk(frames=np.asarray(frames[0], np.uint8)[: speak.size // SAMPLES_PER_FRAME], speak=speak, listen=listen)


def offline(
    base: Any, character: Any, speak: AudioSource, listen: AudioSource, *, text: str = "", seed: int = 0
) -> Iterator[Chunk]:
    """Run a Base LPM over two complete sources; yields one chunk, or none when both are empty."""
    from lpm_model.sampler import sample_base

    voices = [source.read_all() for source in (speak, listen)]
    count = math.ceil(max(voice.size for voice in voices) / SAMPLES_PER_FRAME)
    if not count:
        return
    size = math.ceil(count / FRAMES_PER_LATENT) * SAMPLES_PER_LATENT
    speak_samples, listen_samples = (np.pad(voice, (0, size - voice.size)) for voice in voices)
    frames = sample_base(
        base, character, _waveform(speak_samples), _waveform(listen_samples), [text] if text else None, seed=seed
    )
    samples = count * SAMPLES_PER_FRAME
    yield _chunk_of(frames, speak_samples[:samples], listen_samples[:samples])


def _character(model: Any, image: Path | Frames) -> Any:
    size = model.size_px
    return model.character(read_image(image, size) if isinstance(image, Path) else centre_square(image, size))


def _waveform(samples: Samples) -> Any:
    import torch

    return torch.from_numpy(samples.astype(np.float32) / 32768)[None]


def mix(speak: Samples, listen: Samples) -> Samples:
    """Mix both voices into one int16 track, clipped at full scale."""
    total: npt.NDArray[np.int32] = speak.astype(np.int32) + listen.astype(np.int32)
    return np.clip(total, -32768, 32767).astype(np.int16)


def write_chunks(chunks: Iterable[Chunk], out: Path, *, size_px: int) -> TalkReport:
    """Write chunks as they arrive into an MP4 whose audio is the mix of both voices.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the message states how much video the file contains.
    """
    writer = Mp4Writer(out, height_px=size_px, width_px=size_px, keep_interrupted=True)
    try:
        with writer:
            for chunk in chunks:
                writer.write(chunk.frames, mix(chunk.speak, chunk.listen))
    except KeyboardInterrupt as error:
        written = f"{out} holds the first {writer.frames_written / VIDEO_FPS:.1f} s"
        raise KeyboardInterrupt(written if writer.frames_written else "nothing was written") from error
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
    """Render a character image as a video that speaks one audio file while listening to another.

    Args:
        model_dir: folder of an Online LPM, or of a Base LPM.
        image: the character: an image file or uint8 [H, W, 3]; its centre square is used.
        speak_wav: the character's voice; any audio file, rate and length. None is silence.
        listen_wav: the partner's voice, likewise; the shorter of the two is padded with silence.
        out: the MP4 to write (H.264 + AAC).
        text: prompt that steers the performance.
        online: stream with an Online LPM in constant memory; False runs a Base LPM (bidirectional attention) over the
            whole, which must fit into memory.
        seed: seed of the model's noise.
        progress: reports progress by chunk.

    Raises:
        ValueError: a file is missing or has no audio, or the image is unreadable or too large.
    """
    given = [str(path) for path in (speak_wav, listen_wav) if path]
    if not given:
        raise ValueError("there is no audio: give at least one audio file, to speak or to listen to")
    speak, listen = (AudioReader(path) if path else ArraySource(_NO_AUDIO) for path in (speak_wav, listen_wav))
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
        raise ValueError(f"{' and '.join(given)} hold no audio: give at least one frame (1/24 s)")
    all_chunks: Iterable[Chunk] = itertools.chain([first], chunks)
    if progress is not None:
        all_chunks = progress.track(all_chunks, "talk", max(1, steps))
    report = write_chunks(all_chunks, out, size_px=model.size_px)
    log.info("wrote %s: %.1f s", out, report.seconds)
    return report
