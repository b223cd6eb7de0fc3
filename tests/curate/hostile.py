"""Files that people or their tools put among videos, by mistake or to do harm; made anew, in about a second each."""

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


def film(
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
    """A silent film of a grey wall."""
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


def sound(path: Path, rate: int, layout: str, codec: str, *, with_film: bool = False) -> None:
    """Two seconds of a tone, with a film where wanted."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=24) if with_film else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        stream = out.add_stream(codec, rate=rate, layout=layout)
        form = stream.codec_context.format.name
        for picture in WALL if video is not None else []:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if video is not None:
            out.mux(video.encode(None))
        resampler = av.AudioResampler(format=form, layout=layout, rate=rate, frame_size=1024)
        tone = (8000 * np.sin(np.arange(2 * rate) / 20)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate = rate
        for given in (frame, None):
            for piece in resampler.resample(given):
                piece.pts = None
                out.mux(stream.encode(piece))
        out.mux(stream.encode(None))


def huge_header(path: Path, good: Path) -> None:
    """The sample entry and the track header say 50 000 x 50 000; the stream inside says otherwise."""
    data = bytearray(good.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at + 28 : at + 32] = struct.pack(">HH", 50_000, 50_000)
    path.write_bytes(data)


def raw_avi(path: Path, side: int, rate: int, pictures: int) -> None:
    """An AVI file of raw pictures whose header can claim anything; the pictures are a few bytes."""
    stream = b"vids" + b"\0" * 16 + struct.pack("<7I", 1, rate, 0, pictures, 0, 0, 0) + struct.pack("<4H", 0, 0, 8, 8)
    form = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    main = struct.pack("<14I", 1000, 0, 0, 16, pictures, 0, 1, 0, side, side, 0, 0, 0, 0)

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)

    streams = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", form))
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + streams)
    body = chunk(b"LIST", b"movi" + chunk(b"00db", b"\x40" * 96) * pictures)
    path.write_bytes(chunk(b"RIFF", b"AVI " + header + body))


def png_bomb(path: Path, side: int) -> None:
    """A film of one PNG picture: few bytes that unpack to side * side * 3 bytes."""
    packer, row = zlib.compressobj(1), b"\0" * (1 + 3 * side)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        out.start_encoding()
        for number in range(48):
            packet = av.Packet(picture)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 24), True
            packet.pts = packet.dts = number
            out.mux(packet)


def two_films(path: Path) -> None:
    """Two video streams of different size."""
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


def turned(path: Path, good: Path, quarters: int = 1) -> None:
    """The good film with so many quarter turns in its track's matrix."""
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    cosine, sine = {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[quarters]
    turn = (cosine * 65536, sine * 65536, 0, -sine * 65536, cosine * 65536, 0)
    side = struct.pack(">9i", *turn, 0, 0, 1 << 30)
    data = good.read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + side + data[at + 36 :])


def cover_only(path: Path) -> None:
    """An MP3 song whose only picture is its cover."""
    art = av.VideoFrame.from_ndarray(WALL[0], format="rgb24")
    with av.open(str(path), "w", format="mp3") as out:
        stream = out.add_stream("mp3", rate=44_100)
        picture = out.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 128, 96, "yuvj420p"
        out.mux(picture.encode(art.reformat(format="yuvj420p")))
        for number in range(40):
            piece = av.AudioFrame(format="s16p", layout="stereo", samples=1152)
            piece.sample_rate, piece.pts, piece.time_base = 44_100, number * 1152, Fraction(1, 44_100)
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))


def broken_index(path: Path, good: Path) -> None:
    """The table of where pictures lie points behind the file's end."""
    data = bytearray(good.read_bytes())
    at = data.index(b"stco") + 8
    count = struct.unpack(">I", data[at : at + 4])[0]
    data[at + 4 : at + 4 + 4 * count] = struct.pack(">I", 0x7FFFFF00) * count
    path.write_bytes(data)


def cheap_picture(path: Path, form: str) -> None:
    """One still picture in a picture format."""
    with av.open(str(path), "w", format=form) as out:
        codec, pix_fmt = ("gif", "rgb8") if form == "gif" else ("mjpeg", "yuvj420p")
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pix_fmt
        out.mux(stream.encode(av.VideoFrame.from_ndarray(WALL[0], format="rgb24").reformat(format=pix_fmt)))
        out.mux(stream.encode(None))


def makers(good: Path, outside: Path, port: int) -> dict[str, Any]:
    """How each file is made: name -> function of the path. `outside` must not be read, `port` not called."""
    size = good.stat().st_size
    playlist = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{outside}\n#EXTINF:9,\nhttp://127.0.0.1:{port}/a.ts\n"
    )
    return {
        "empty.mp4": lambda p: p.touch(),
        "no_index.mp4": lambda p: p.write_bytes(good.read_bytes()[: size // 3]),
        "truncated_moov.mp4": lambda p: (film(p), p.write_bytes(p.read_bytes()[:-300])),
        "header_50000.mp4": lambda p: huge_header(p, good),
        "header_50000.avi": lambda p: raw_avi(p, 50_000, 24, 48),
        "header_16000.avi": lambda p: raw_avi(p, 16_000, 24, 48),
        "one_frame.mp4": lambda p: film(p, frames=1),
        "ten_hours.mkv": lambda p: film(p, frames=10, every_s=Fraction(4000)),
        "two_hours_two_frames.mkv": lambda p: film(p, frames=2, every_s=Fraction(7000)),
        "variable_rate.mkv": lambda p: write_video(p, WALL, [0.2 * n**0.5 for n in range(48)]),
        "turned.mp4": lambda p: turned(p, good),
        "ten_bit.mp4": lambda p: film(p, codec="libx264", pix_fmt="yuv420p10le"),
        "odd_size.mkv": lambda p: film(p, (127, 95), codec="ffv1", pix_fmt="yuv444p"),
        "two_pixels.mkv": lambda p: film(p, (2, 2), codec="ffv1", pix_fmt="yuv444p"),
        "ribbon.mkv": lambda p: film(p, (4000, 2), codec="ffv1", pix_fmt="yuv444p"),
        "playlist.mp4": lambda p: p.write_text(playlist),
        "playlist.mkv": lambda p: p.write_text(playlist),
        "concat.mp4": lambda p: p.write_text(f"ffconcat version 1.0\nfile {outside}\n"),
        "concat.avi": lambda p: p.write_text(f"ffconcat version 1.0\nfile {outside}\n"),
        "matroska_as.mp4": lambda p: film(p, container="matroska"),
        "mp4_as.avi": lambda p: film(p, container="mp4"),
        "no_audio.mp4": film,
        "audio_only.mp4": lambda p: sound(p, 44_100, "stereo", "aac"),
        "eight_channels.mkv": lambda p: sound(p, 96_000, "7.1", "pcm_s16le", with_film=True),
        "absurd_fps.mp4": lambda p: film(p, frames=48, every_s=Fraction(1, 12_000)),
        "absurd_fps.avi": lambda p: raw_avi(p, 64, 100_000_000, 48),
        "broken_index.mp4": lambda p: broken_index(p, good),
        "link_out.mp4": lambda p: p.symlink_to(outside),
        "new\nline.mp4": film,
        "quote'\"<script>alert(1)<b>.mp4": film,
        "bomb.mov": lambda p: png_bomb(p, 12_000),
        "before_zero.mkv": lambda p: film(p, first_s=Fraction(-3)),
        "cover.mp4": cover_only,
        "gif.mp4": lambda p: cheap_picture(p, "gif"),
        "photo.mp4": lambda p: cheap_picture(p, "image2pipe"),
        "two_films.mkv": two_films,
        "text.mov": lambda p: p.write_text("Dear diary\n" * 200),
        "noise.webm": lambda p: p.write_bytes(np.random.default_rng(0).bytes(60_000)),
        "zeros.mp4": lambda p: p.write_bytes(bytes(1 << 20)),
        "pipe.mp4": lambda p: os.mkfifo(p),
        "folder.mp4": lambda p: p.mkdir(),
    }
