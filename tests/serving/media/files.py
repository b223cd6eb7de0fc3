"""Media files for tests: tones, WAV files, MP4 files read back, and files that are not what they claim."""

import wave
from pathlib import Path

import av
import numpy as np


def tone(seconds: float, rate: int = 24_000, level: float = 8000) -> np.ndarray:
    """A 300 Hz sine, int16 [seconds * rate]."""
    return (level * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int = 24_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples.astype("<i2"), channels).tobytes())
    return path


def read_mp4(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Frames uint8 [T, H, W, 3], audio float [n] and its rate."""
    with av.open(str(path)) as container:
        video = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with av.open(str(path)) as container:
        audio = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    return video, audio, rate


def write_text(path: Path) -> Path:
    path.write_text("hello " * 100)
    return path


def write_silent_video(path: Path) -> Path:
    """An MP4 without an audio track."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_playlist(path: Path, url: str) -> Path:
    """An HLS playlist, whatever the file's name says, whose only segment is at `url`."""
    path.write_text(f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{url}\n#EXT-X-ENDLIST\n")
    return path
