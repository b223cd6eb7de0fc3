"""Encode a chunk's frames and voice as one fragmented-MP4 media segment (H.264 baseline + AAC), and decode it.

Time stamps are the media clock itself (timescale 24,000): frame f starts at sample 1000 f, so video and audio cannot
drift apart. Every chunk is a separate fragment and is sent at once; nothing waits for the next packet.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import av
import av.audio
import av.video
import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS
from serving.media.audio import Pcm
from serving.media.codecs import CLOCK, add_aac, add_h264, rgb_frame

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
    # One key frame per second bounds what a player must decode after a jump to the live edge. The colour fields declare
    # the RGB conversion, so that no player has to guess it.
    "x264-params": "keyint=24:min-keyint=24:scenecut=0:colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m",
}


class ChunkEncoder:
    """Encoder of one viewer's stream; create a new one after a reconnect, so that the first frame is a key frame."""

    def __init__(self, size_px: int, *, start_pts: int = 0) -> None:
        self._size_px = size_px
        self._source = av.open(io.BytesIO(), "w", format="mp4", options=_MUXER)
        video = add_h264(self._source, width_px=size_px, height_px=size_px, fps=VIDEO_FPS, options=_X264)
        video.codec_context.time_base = CLOCK
        video.codec_context.thread_count = 1
        audio = add_aac(self._source, bits_per_s=64_000)
        self._source.start_encoding()
        self._video, self._audio = video, audio
        self._pending = np.zeros(0, np.int16)
        self._start_pts = self._audio_pts = start_pts
        self._fragment = 0
        self.init_segment = self._mux([])[0]
        profile = (video.codec_context.extradata or b"")[5:8].hex().upper()
        self.mime = f'video/mp4; codecs="avc1.{profile},mp4a.40.2"'

    def encode(self, pts: int, frames: NDArray[np.uint8], voice: Pcm) -> bytes:
        """Encode one chunk and return its media segment.

        Args:
            pts: media time (samples) of the first frame.
            frames: uint8 [T, H, W, 3].
            voice: int16 [1000 T] of the same span.
        """
        packets: list[av.Packet] = []
        for index, frame in enumerate(frames):
            encodable = rgb_frame(frame)
            encodable.pts, encodable.time_base = pts + index * SAMPLES_PER_FRAME, CLOCK
            packets += self._video.encode(encodable)
        self._pending = np.concatenate([self._pending, voice])
        while self._pending.size >= AAC_FRAME:
            pcm, self._pending = self._pending[:AAC_FRAME], self._pending[AAC_FRAME:]
            block = av.AudioFrame.from_ndarray(pcm[None].astype(np.float32) / 32768.0, format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = AUDIO_RATE, self._audio_pts, CLOCK
            self._audio_pts += AAC_FRAME
            # The encoder's priming packet precedes the first sample; without it all times are exact.
            packets += [p for p in self._audio.encode(block) if p.pts is not None and p.pts >= self._start_pts]
        return self._mux(packets)[1]

    def close(self) -> None:
        """Free the codecs."""
        self._source.close()

    def _mux(self, packets: list[av.Packet]) -> tuple[bytes, bytes]:
        """Return the initialisation segment and the fragment that contains the packets."""
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
    """Yield name and offset of each top-level MP4 box."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8].decode("latin-1"), at
        at += max(size, 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedChunk:
    """Frames and voice of one media segment."""

    pts: list[int]
    """Media time (samples) of each frame."""
    frames: NDArray[np.uint8]
    """uint8 [T, H, W, 3]."""
    voice_pts: int
    """Media time of the first voice sample."""
    voice: Pcm
    """int16 [n]."""


class ChunkDecoder:
    """Decodes one viewer's stream segment by segment; the codecs persist between segments."""

    def __init__(self, init_segment: bytes) -> None:
        self._init = init_segment
        self._video: av.video.codeccontext.VideoCodecContext | None = None
        self._audio: av.audio.codeccontext.AudioCodecContext | None = None

    def decode(self, segment: bytes) -> DecodedChunk:
        """Decode the frames [T, H, W, 3] and the voice of one media segment, with their times."""
        with av.open(io.BytesIO(self._init + segment), "r", format="mp4") as container:
            if self._video is None or self._audio is None:
                self._video = av.VideoCodecContext.create("h264", "r")
                self._video.extradata = container.streams.video[0].codec_context.extradata
                self._video.thread_type = "NONE"
                self._video.flags |= av.codec.context.Flags.low_delay
                self._audio = av.AudioCodecContext.create("aac", "r")
                self._audio.extradata = container.streams.audio[0].codec_context.extradata
                self._audio.sample_rate, self._audio.layout = AUDIO_RATE, "mono"
            video_frames: list[av.VideoFrame] = []
            audio_frames: list[av.AudioFrame] = []
            for packet in container.demux():
                if packet.dts is None:
                    continue
                if packet.stream.type == "video":
                    video_frames += self._video.decode(packet)
                else:
                    audio_frames += self._audio.decode(packet)
        frames = [frame.to_ndarray(format="rgb24") for frame in video_frames]
        voice = [np.clip(frame.to_ndarray()[0] * 32768.0, -32768, 32767).astype(np.int16) for frame in audio_frames]
        return DecodedChunk(
            pts=[frame.pts or 0 for frame in video_frames],
            frames=np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8),
            voice_pts=(audio_frames[0].pts or 0) if audio_frames else 0,
            voice=np.concatenate(voice) if voice else np.zeros(0, np.int16),
        )
