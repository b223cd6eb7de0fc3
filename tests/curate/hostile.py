"""Files that get among videos by mistake or with malicious intent; each takes about a second to make."""

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.curate.corpus import write_video

WALL = [np.full((96, 128, 3), 60 + n % 90, np.uint8) for n in range(48)]


def silent_video(
    path: Path,
    size: tuple[int, int] = (128, 96),
    *,
    frames: int = 48,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    every_s: Fraction = Fraction(1, 24),
    first_s: Fraction = Fraction(0),
    container: str | None = None,
) -> None:
    """Write a silent video of a grey wall."""
    base = Fraction(1, 12_000)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = base
        for number in range(frames):
            frame = av.VideoFrame(*size, pix_fmt)
            for plane in frame.planes:
                plane.update(bytes([60 + number % 90]) * plane.buffer_size)
            frame.pts, frame.time_base = round((first_s + number * every_s) / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def tone(path: Path, rate: int, layout: str, codec: str, *, with_video: bool = False) -> None:
    """Write two seconds of a tone, with video if wanted."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=24) if with_video else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        stream = out.add_stream(codec, rate=rate, layout=layout)
        form = stream.codec_context.format.name
        for image in WALL if video is not None else []:
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if video is not None:
            out.mux(video.encode(None))
        resampler = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=1024)
        samples = (8000 * np.sin(np.arange(2 * rate) / 20)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        for given in (frame, None):
            for chunk in resampler.resample(given):
                chunk.pts = None
                out.mux(stream.encode(chunk))
        out.mux(stream.encode(None))


def huge_header(path: Path, good: Path) -> None:
    """Set 50 000 x 50 000 in the sample entry and the track header, but not in the stream."""
    data = bytearray(good.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at + 28 : at + 32] = struct.pack(">HH", 50_000, 50_000)
    path.write_bytes(data)


def raw_avi(path: Path, side: int, rate: int, frames: int) -> None:
    """Write an AVI file of raw frames of a few bytes each, with any size and rate in its header."""
    stream = b"vids" + b"\0" * 16 + struct.pack("<7I", 1, rate, 0, frames, 0, 0, 0) + struct.pack("<4H", 0, 0, 8, 8)
    form = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    main = struct.pack("<14I", 1000, 0, 0, 16, frames, 0, 1, 0, side, side, 0, 0, 0, 0)

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    streams = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", form))
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + streams)
    body = chunk(b"LIST", b"movi" + chunk(b"00db", b"\x40" * 96) * frames)
    path.write_bytes(chunk(b"RIFF", b"AVI " + header + body))


def png_bomb(path: Path, side: int) -> None:
    """Write a video of one PNG image: few bytes that unpack to side * side * 3 bytes."""
    packer, row = zlib.compressobj(1), b"\0" * (1 + 3 * side)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        out.start_encoding()
        for number in range(48):
            packet = av.Packet(png)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 24), True
            packet.pts = packet.dts = number
            out.mux(packet)


def two_videos(path: Path) -> None:
    """Write two video streams of different sizes."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("mpeg4", rate=24) for _ in range(2)]
        for stream, side in zip(streams, (64, 128), strict=True):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
        for number in range(48):
            for stream in streams:
                frame = av.VideoFrame(stream.width, stream.width, "yuv420p")
                frame.pts = number
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))


def rotated(path: Path, good: Path, quarters: int = 1) -> None:
    """Copy a video with a number of quarter turns in its track's matrix."""
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    cosine, sine = {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[quarters]
    rotation = (cosine * 65536, sine * 65536, 0, -sine * 65536, cosine * 65536, 0)
    matrix = struct.pack(">9i", *rotation, 0, 0, 1 << 30)
    data = good.read_bytes()
    at = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:at] + matrix + data[at + 36 :])


def cover_only(path: Path) -> None:
    """Write an MP3 song whose only image is its cover."""
    art = av.VideoFrame.from_ndarray(WALL[0], format="rgb24")
    with av.open(str(path), "w", format="mp3") as out:
        stream = out.add_stream("mp3", rate=44_100)
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 128, 96, "yuvj420p"
        out.mux(cover.encode(art.reformat(format="yuvj420p")))
        for number in range(40):
            chunk = av.AudioFrame(format="s16p", layout="stereo", samples=1152)
            chunk.sample_rate, chunk.pts, chunk.time_base = 44_100, number * 1152, Fraction(1, 44_100)
            out.mux(stream.encode(chunk))
        out.mux(stream.encode(None))


def broken_index(path: Path, good: Path) -> None:
    """Copy a video and make its chunk offsets point beyond the end of the file."""
    data = bytearray(good.read_bytes())
    at = data.index(b"stco") + 8
    count = struct.unpack(">I", data[at : at + 4])[0]
    data[at + 4 : at + 4 + 4 * count] = struct.pack(">I", 0x7FFFFF00) * count
    path.write_bytes(data)


def still_image(path: Path, form: str) -> None:
    """Write one still image in an image format."""
    with av.open(str(path), "w", format=form) as out:
        codec, pix_fmt = ("gif", "rgb8") if form == "gif" else ("mjpeg", "yuvj420p")
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        out.mux(stream.encode(av.VideoFrame.from_ndarray(WALL[0], format="rgb24").reformat(format=pix_fmt)))
        out.mux(stream.encode(None))


def makers(good: Path, outside: Path, port: int) -> dict[str, Any]:
    """Return functions of a path that make each file, by name. `outside` must not be read, `port` not called."""
    size = good.stat().st_size
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{outside}\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n"
    )
    return {
        "empty.mp4": lambda p: p.touch(),
        "no_index.mp4": lambda p: p.write_bytes(good.read_bytes()[: size // 3]),
        "truncated_moov.mp4": lambda p: (silent_video(p), p.write_bytes(p.read_bytes()[:-300])),
        "header_50000.mp4": lambda p: huge_header(p, good),
        "header_50000.avi": lambda p: raw_avi(p, 50_000, 24, 48),
        "header_16000.avi": lambda p: raw_avi(p, 16_000, 24, 48),
        "one_frame.mp4": lambda p: silent_video(p, frames=1),
        "ten_hours.mkv": lambda p: silent_video(p, frames=10, every_s=Fraction(4000)),
        "two_hours_two_frames.mkv": lambda p: silent_video(p, frames=2, every_s=Fraction(7000)),
        "variable_rate.mkv": lambda p: write_video(p, WALL, [0.2 * n**0.5 for n in range(48)]),
        "rotated.mp4": lambda p: rotated(p, good),
        "ten_bit.mp4": lambda p: silent_video(p, codec="libx264", pix_fmt="yuv420p10le"),
        "odd_size.mkv": lambda p: silent_video(p, (127, 95), codec="ffv1", pix_fmt="yuv444p"),
        "two_pixels.mkv": lambda p: silent_video(p, (2, 2), codec="ffv1", pix_fmt="yuv444p"),
        "ribbon.mkv": lambda p: silent_video(p, (4000, 2), codec="ffv1", pix_fmt="yuv444p"),
        "playlist.mp4": lambda p: p.write_text(playlist),
        "playlist.mkv": lambda p: p.write_text(playlist),
        "concat.mp4": lambda p: p.write_text(f"ffconcat version 1.0\nfile {outside}\n"),
        "concat.avi": lambda p: p.write_text(f"ffconcat version 1.0\nfile {outside}\n"),
        "matroska_as.mp4": lambda p: silent_video(p, container="matroska"),
        "mp4_as.avi": lambda p: silent_video(p, container="mp4"),
        "no_audio.mp4": silent_video,
        "audio_only.mp4": lambda p: tone(p, 44_100, "stereo", "aac"),
        "eight_channels.mkv": lambda p: tone(p, 96_000, "7.1", "pcm_s16le", with_video=True),
        "absurd_fps.mp4": lambda p: silent_video(p, frames=48, every_s=Fraction(1, 12_000)),
        "absurd_fps.avi": lambda p: raw_avi(p, 64, 100_000_000, 48),
        "broken_index.mp4": lambda p: broken_index(p, good),
        "link_out.mp4": lambda p: p.symlink_to(outside),
        "new\nline.mp4": silent_video,
        "quote'\"<script>alert(1)<b>.mp4": silent_video,
        "bomb.mov": lambda p: png_bomb(p, 12_000),
        "before_zero.mkv": lambda p: silent_video(p, first_s=Fraction(-3)),
        "cover.mp4": cover_only,
        "gif.mp4": lambda p: still_image(p, "gif"),
        "photo.mp4": lambda p: still_image(p, "image2pipe"),
        "two_videos.mkv": two_videos,
        "text.mov": lambda p: p.write_text("Dear diary\n" * 200),
        "noise.webm": lambda p: p.write_bytes(np.random.default_rng(0).bytes(60_000)),
        "zeros.mp4": lambda p: p.write_bytes(bytes(1 << 20)),
        "pipe.mp4": lambda p: os.mkfifo(p),
        "folder.mp4": lambda p: p.mkdir(),
    }
