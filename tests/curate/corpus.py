"""Small corpora for the tests: videos, files that must be rejected, raw/ folders."""

import json
import os
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from components.curate.video.frame import DecodedFrame, Scalers
from lpm_model.digests import file_digest


def make_raw(folder: Path, files: Iterable[Path], **fields: object) -> Path:
    """Make a raw/ folder of copies of files; cameras and conversations follow from the names."""
    (folder / "media").mkdir(parents=True)
    lines = []
    for file in files:
        shutil.copyfile(file, folder / "media" / file.name)
        camera = next((c for c in ("two_shot", "a", "b") if file.stem.endswith(f"_{c}")), None)
        lines.append(
            {
                "source_id": file.stem,
                "file": f"media/{file.name}",
                "sha256": file_digest(file),
                "bytes": file.stat().st_size,
                "origin": "performer",
                "licence": "CC0-1.0",
                "consent_ref": "test",
                "conversation_id": file.stem.removesuffix(f"_{camera}") if camera else None,
                "camera": camera,
                "person_hint": None,
                **fields,
            }
        )
    (folder / "sources.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def as_frame(rgb: np.ndarray) -> DecodedFrame:
    """Return an RGB array as a decoded frame."""
    return DecodedFrame(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24"), Scalers())


def write_video(
    path: Path,
    images: list[np.ndarray],
    times_s: list[float] | None = None,
    tone_from_s: float | None = None,
    fps: int = 24,
) -> Path:
    """Write an MPEG-4 video with the given time stamps, and a 440 Hz tone at 48 kHz stereo if wanted."""
    base = Fraction(1, 12000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        stream.options = {"q:v": "2"}
        audio = out.add_stream("aac", rate=48000, layout="stereo") if tone_from_s is not None else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = round((times_s[number] if times_s else number / fps) / base)
            frame.time_base = base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio is not None:
            seconds = times_s[-1] if times_s else len(images) / fps
            at = np.arange(round(seconds * 48000)) / 48000
            tone = np.where(at >= tone_from_s, 0.5 * np.sin(2 * np.pi * 440 * at), 0.0)
            pcm = np.repeat((tone * 32767).astype(np.int16), 2)[None]
            for start in range(0, pcm.shape[1] // 2, 1024):
                chunk = av.AudioFrame.from_ndarray(
                    pcm[:, 2 * start : 2 * (start + 1024)], format="s16", layout="stereo"
                )
                chunk.sample_rate, chunk.pts, chunk.time_base = 48000, start, Fraction(1, 48000)
                out.mux(audio.encode(chunk))
            out.mux(audio.encode())
    return path


def without_audio(source: Path, target: Path) -> Path:
    """Copy the video stream without the audio track."""
    with av.open(str(source)) as given, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target


def rejected_files(folder: Path, good: Path) -> dict[str, Path]:
    """Make one file for each reason to be rejected."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    empty, corrupt, cut = folder / "empty.mp4", folder / "corrupt.mp4", folder / "cut.mp4"
    empty.touch()
    corrupt.write_bytes(noise.bytes(20_000))
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 3])
    playlist = folder / "playlist.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {os.fspath(good)}\n")
    walls = [np.full((128, 128, 3), 40 + 2 * (n % 30), np.uint8) for n in range(60)]
    return {
        "empty": empty,
        "corrupt": corrupt,
        "cut": cut,
        "playlist": playlist,
        "no_audio": without_audio(good, folder / "no_audio.mp4"),
        "no_face": write_video(folder / "no_face.mp4", walls, tone_from_s=0.0),
        "too_short": write_video(folder / "too_short.mp4", walls[:12], tone_from_s=0.0),
    }
