"""Pictures and voice of a chunk to one fragmented-MP4 media segment (H.264 baseline + AAC), and back again.

Time stamps are the media clock itself (timescale 24,000): frame f starts at sample 1000 f, so picture and voice cannot
drift. Every chunk is a fragment of its own that leaves at once; nothing waits for the next packet.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import av.audio
import av.video
import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS
from serving.media.audio import Pcm

CLOCK = Fraction(1, AUDIO_RATE)
AAC_FRAME = 1024
_MUXER = {
    # frag_discont writes absolute decode times, which lets each chunk have a muxer of its own.
    "movflags": "empty_moov+default_base_moof+frag_discont+skip_trailer",
    "avoid_negative_ts": "disabled",
    "video_track_timescale": str(AUDIO_RATE),
}
_X264 = {
    "preset": "veryfast",
    "tune": "zerolatency",
    "profile": "baseline",
    "crf": "20",
    # One key frame a second bounds what a player must decode after a jump to the live edge. The colour fields say what
    # the RGB conversion does, so that no player has to guess.
    "x264-params": "keyint=24:min-keyint=24:scenecut=0:colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m",
}


class ChunkEncoder:
    """One viewer's encoder; make a new one after a reconnect, so that the first picture is a key frame."""

    def __init__(self, size_px: int, *, start_pts: int = 0) -> None:
        self._size_px = size_px
        self._source = av.open(io.BytesIO(), "w", format="mp4", options=_MUXER)
        video = self._source.add_stream("libx264", rate=VIDEO_FPS, options=_X264)
        video.width = video.height = size_px
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = CLOCK
        video.codec_context.thread_count = 1
        audio = self._source.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        audio.bit_rate = 64_000
        self._source.start_encoding()
        self._video, self._audio = video, audio
        self._waiting = np.zeros(0, np.int16)
        self._start_pts = self._audio_pts = start_pts
        self._fragment = 0
        self.init_segment = self._mux([])[0]
        profile = (video.codec_context.extradata or b"")[5:8].hex().upper()
        self.mime = f'video/mp4; codecs="avc1.{profile},mp4a.40.2"'

    def encode(self, pts: int, frames: NDArray[np.uint8], voice: Pcm) -> bytes:
        """One media segment.

        Args:
            pts: media time (samples) of the first frame.
            frames: uint8 [T, H, W, 3].
            voice: int16 [1000 T] of the same span.
        """
        packets: list[av.Packet] = []
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = pts + index * SAMPLES_PER_FRAME, CLOCK
            packets += self._video.encode(frame)
        self._waiting = np.concatenate([self._waiting, voice])
        while self._waiting.size >= AAC_FRAME:
            pcm, self._waiting = self._waiting[:AAC_FRAME], self._waiting[AAC_FRAME:]
            block = av.AudioFrame.from_ndarray(pcm[None].astype(np.float32) / 32768.0, format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = AUDIO_RATE, self._audio_pts, CLOCK
            self._audio_pts += AAC_FRAME
            # The encoder's priming packet lies before the first sample; without it all times are exact.
            packets += [p for p in self._audio.encode(block) if p.pts is not None and p.pts >= self._start_pts]
        return self._mux(packets)[1]

    def close(self) -> None:
        """Free the codecs."""
        self._source.close()

    def _mux(self, packets: list[av.Packet]) -> tuple[bytes, bytes]:
        """The initialisation segment and the fragment that holds the packets."""
        self._fragment += 1
        sink = io.BytesIO()
        with av.open(sink, "w", format="mp4", options={**_MUXER, "fragment_index": str(self._fragment)}) as container:
            streams = {
                "video": container.add_stream_from_template(self._video),
                "audio": container.add_stream_from_template(self._audio),
            }
            container.start_encoding()
            for packet in packets:
                kind = packet.stream.type
                packet.stream = streams[kind]
                if kind == "video":
                    packet.duration = SAMPLES_PER_FRAME
                container.mux(packet)
        data = sink.getvalue()
        cut = next((start for name, start in boxes(data) if name == "moof"), len(data))
        return data[:cut], data[cut:]


def boxes(data: bytes) -> Iterator[tuple[str, int]]:
    """Name and offset of each top-level MP4 box."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8].decode("latin-1"), at
        at += max(size, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedChunk:
    """What a viewer sees and hears of one media segment."""

    pts: list[int]
    """Media time (samples) of each frame."""
    frames: NDArray[np.uint8]
    """uint8 [T, H, W, 3]."""
    voice_pts: int
    """Media time of the first voice sample."""
    voice: Pcm
    """int16 [n]."""


class ChunkDecoder:
    """Decodes one viewer's stream, segment by segment, with codecs that live on between them."""

    def __init__(self, init_segment: bytes) -> None:
        self._init = init_segment
        self._video: av.video.codeccontext.VideoCodecContext | None = None
        self._audio: av.audio.codeccontext.AudioCodecContext | None = None

    def decode(self, segment: bytes) -> DecodedChunk:
        """Frames [T, H, W, 3] and voice of one media segment, with their times."""
        with av.open(io.BytesIO(self._init + segment), "r", format="mp4") as container:
            if self._video is None or self._audio is None:
                self._video = av.VideoCodecContext.create("h264", "r")
                self._video.extradata = container.streams.video[0].codec_context.extradata
                self._video.thread_type = "NONE"
                self._video.flags |= av.codec.context.Flags.low_delay
                self._audio = av.AudioCodecContext.create("aac", "r")
                self._audio.extradata = container.streams.audio[0].codec_context.extradata
                self._audio.sample_rate, self._audio.layout = AUDIO_RATE, "mono"
            pictures: list[av.VideoFrame] = []
            sounds: list[av.AudioFrame] = []
            for packet in container.demux():
                if packet.dts is None:
                    continue
                if packet.stream.type == "video":
                    pictures += self._video.decode(packet)
                else:
                    sounds += self._audio.decode(packet)
        frames = [picture.to_ndarray(format="rgb24") for picture in pictures]
        waves = [np.clip(sound.to_ndarray()[0] * 32768.0, -32768, 32767).astype(np.int16) for sound in sounds]
        return DecodedChunk(
            pts=[picture.pts or 0 for picture in pictures],
            frames=np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8),
            voice_pts=(sounds[0].pts or 0) if sounds else 0,
            voice=np.concatenate(waves) if waves else np.zeros(0, np.int16),
        )
