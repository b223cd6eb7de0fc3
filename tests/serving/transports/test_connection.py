"""A second transport, written against `Transport` and `Connection` alone: no socket, no fMP4, raw frames."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serving.config import ServingConfig
from serving.engine import FakeEngine
from serving.metrics import Metrics
from serving.protocol import (
    AudioAppend,
    Closed,
    Error,
    Interrupt,
    MediaChunk,
    PlaybackFinished,
    ProtocolError,
    ServerMessage,
    SessionClose,
    SessionOpen,
    SessionReady,
    TextSpeak,
)
from serving.service import CharacterService
from serving.transports.api import Transport
from serving.transports.connection import Connection

TOKEN = "a-token-for-tests"


@dataclass
class RawTracks:
    """Stands in for the media tracks of a WebRTC peer: keeps the frames and the voice."""

    mime: str = ""
    init_segment: bytes = b""
    frames: list[np.ndarray] = field(default_factory=list)
    voices: list[np.ndarray] = field(default_factory=list)

    def encode(self, pts: int, frames: np.ndarray, voice: np.ndarray) -> bytes:
        self.frames.append(frames)
        self.voices.append(voice)
        return b""

    def close(self) -> None:
        pass


class InMemoryTransport:
    """Stores what the service sends."""

    def __init__(self) -> None:
        self.closed = False
        self.messages: list[ServerMessage] = []
        self.tracks = RawTracks()
        self._received = asyncio.Event()

    def send(self, messages: list[ServerMessage]) -> None:
        self.messages += messages
        self._received.set()

    def send_media(self, message: ServerMessage, payload: bytes) -> None:
        self.send([message])

    async def media_ready(self) -> bool:
        return not self.closed

    def make_encoder(self, size_px: int, start_pts: int) -> RawTracks:
        return self.tracks

    def close(self) -> None:
        self.closed = True
        self._received.set()

    def of(self, kind: type) -> list:
        return [message for message in self.messages if isinstance(message, kind)]

    async def wait(self, kind: type, count: int = 1) -> ServerMessage:
        async with asyncio.timeout(20):
            while len(self.of(kind)) < count:
                self._received.clear()
                await self._received.wait()
        return self.of(kind)[count - 1]


@pytest.fixture
async def service(voice):
    def speak(text: str, name: str) -> np.ndarray:
        return voice(2400 * len(text))

    metrics = Metrics(CollectorRegistry())
    made = CharacterService(FakeEngine(32), ServingConfig(max_bad_messages=2), metrics, voice=speak, voices=("test",))
    await made.start()
    yield made
    await made.stop()


def pcm(voice: np.ndarray) -> bytes:
    return voice.astype("<i2").tobytes()


async def test_a_conversation_runs_over_another_transport(service, voice) -> None:
    transport = InMemoryTransport()
    as_declared: Transport = transport
    connection = Connection(service, as_declared, TOKEN)
    await connection.start(SessionOpen(token=TOKEN))
    assert transport.of(SessionReady)
    await connection.receive(AudioAppend(role="character", segment_id="a"), pcm(voice(240_000)))
    await transport.wait(MediaChunk, count=4)
    await connection.receive(Interrupt())
    finished = await transport.wait(PlaybackFinished)
    assert finished.interrupted
    after = len(transport.tracks.voices)
    await transport.wait(MediaChunk, count=after + 3)
    assert not np.concatenate(transport.tracks.voices[after + 1 :]).any()
    await connection.receive(TextSpeak(text="Hi.", segment_id="b"))
    assert (await transport.wait(PlaybackFinished, count=2)).position_samples == 7200
    await connection.receive(SessionClose())
    assert connection.over
    assert transport.closed
    assert transport.of(Closed)[0].reason == "client"
    assert transport.tracks.frames[0].shape == (4, 32, 32, 3)
    assert "lpm_interruptions_total 1.0" in generate_latest(service.metrics.registry).decode()


async def test_start_needs_the_token_and_an_opening_message(service) -> None:
    connection = Connection(service, InMemoryTransport(), TOKEN)
    with pytest.raises(ProtocolError, match="wrong token"):
        await connection.start(SessionOpen(token="wrong"))
    with pytest.raises(ProtocolError, match="first message"):
        await connection.start(Interrupt())
    assert service.sessions == ()


async def test_refuse_reports_the_error_and_closes(service) -> None:
    transport = InMemoryTransport()
    Connection(service, transport, TOKEN).refuse(ProtocolError("unauthorized", "wrong token"))
    assert [type(message) for message in transport.messages] == [Error, Closed]
    assert transport.closed


async def test_too_many_rejected_messages_end_the_session(service) -> None:
    transport = InMemoryTransport()
    connection = Connection(service, transport, TOKEN)
    await connection.start(SessionOpen(token=TOKEN))
    for _ in range(2):
        await connection.reject(ProtocolError("bad_message", "not JSON"))
    assert connection.over
    assert transport.of(Closed)[0].reason == "protocol_violation"


async def test_end_detaches_the_session_for_a_resume(service) -> None:
    transport = InMemoryTransport()
    connection = Connection(service, transport, TOKEN)
    await connection.start(SessionOpen(token=TOKEN))
    await transport.wait(MediaChunk)
    connection.end()
    assert transport.closed
    (live,) = service.sessions
    assert live.transport is None
    assert not live.over


async def test_dropped_user_audio_is_counted_whether_it_overflows_or_ages(service, voice) -> None:
    transport = InMemoryTransport()
    connection = Connection(service, transport, TOKEN)
    await connection.start(SessionOpen(token=TOKEN))
    await connection.receive(AudioAppend(role="user"), pcm(voice(100_000)))  # the buffer holds 48,000
    await transport.wait(MediaChunk, count=len(transport.of(MediaChunk)) + 2)
    counted = service.metrics.registry.get_sample_value("lpm_user_samples_dropped_total")
    assert counted >= 52_000
