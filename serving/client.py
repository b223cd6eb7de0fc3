"""Async Python client of the live endpoint, and the smoke conversation of tests and evaluation."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE
from serving.media.audio import Pcm
from serving.media.fragments import ChunkDecoder
from serving.protocol import (
    STREAM_PATH,
    AudioAppend,
    ClientMessage,
    Error,
    Interrupt,
    MediaChunk,
    MediaInit,
    Ping,
    Resumed,
    SegmentEnd,
    ServerMessage,
    SessionClose,
    SessionOpen,
    SessionReady,
    SessionResume,
    TextPrompt,
    TextSpeak,
    pack,
    parse_server,
)

M = TypeVar("M", bound=ServerMessage)


class RefusedError(ConnectionError):
    """The server did not open or resume the session; `code` is the error code of the reason."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.code = error.code
        self.retryable = error.retryable


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceivedChunk:
    """A received chunk, decoded."""

    message: MediaChunk
    """The server's message."""
    received_s: float
    """When its bytes arrived (time.perf_counter)."""
    decoded_s: float
    """When its frames were decoded."""
    pts: list[int]
    """Media time (samples) of each frame."""
    frames: NDArray[np.uint8]
    """uint8 [T, H, W, 3]; empty with keep_frames=False."""
    voice_pts: int
    """Media time of the first voice sample."""
    voice: Pcm
    """int16 [n]: the character's voice after decoding."""


@dataclass
class CharacterClient:
    """Client of one session; received messages are stored in order in `events` (control) and `chunks` (media)."""

    socket: Any
    keep_frames: bool = True
    ready: SessionReady | None = None
    init: MediaInit | None = None
    events: list[ServerMessage] = field(default_factory=list)
    chunks: list[ReceivedChunk] = field(default_factory=list)
    last_seq: int = 0
    resume_token: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _decoder: ChunkDecoder | None = None
    _done: bool = False
    _reader: asyncio.Task[None] | None = None

    async def send(self, message: ClientMessage, payload: bytes | None = None) -> None:
        """Send one message, with its payload if it has one."""
        if payload is None:
            await self.socket.send(message.model_dump_json(exclude_none=True))
        else:
            await self.socket.send(pack(message, payload))

    async def append_user(self, pcm: Pcm) -> None:
        """Send live user audio int16 [n] at 24 kHz."""
        await self.send(AudioAppend(role="user"), pcm.astype("<i2").tobytes())

    async def append_character(self, segment_id: str, pcm: Pcm) -> None:
        """Send audio int16 [n] at 24 kHz for the character to speak."""
        await self.send(AudioAppend(role="character", segment_id=segment_id), pcm.astype("<i2").tobytes())

    async def end_segment(self, segment_id: str) -> None:
        """Mark a segment as complete."""
        await self.send(SegmentEnd(segment_id=segment_id))

    async def speak(self, text: str, *, voice: str | None = None, segment_id: str | None = None) -> None:
        """Have the server synthesise and speak a text."""
        await self.send(TextSpeak(text=text, voice=voice, segment_id=segment_id))

    async def prompt(self, text: str) -> None:
        """Steer the performance from now on."""
        await self.send(TextPrompt(prompt=text))

    async def interrupt(self, reason: str = "user") -> None:
        """Silence the character."""
        await self.send(Interrupt(reason=reason))

    async def ping(self) -> None:
        """Request a pong."""
        await self.send(Ping(t=time.monotonic_ns() // 1_000_000))

    async def close(self) -> None:
        """End the session."""
        await self.send(SessionClose())
        await self.wait(lambda: self._done)

    async def wait(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until received messages make the condition true.

        Raises:
            TimeoutError: the condition did not become true in time.
            ConnectionError: the connection ended first.
        """
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition() or self._done)
        if not condition():
            raise ConnectionError("the connection ended before the awaited condition became true")

    async def wait_event(self, kind: type[M], count: int = 1, timeout_s: float = 20.0) -> M:
        """Wait for the `count`-th event of a kind and return it."""
        await self.wait(lambda: len(self.of(kind)) >= count, timeout_s)
        return self.of(kind)[count - 1]

    def of(self, kind: type[M]) -> list[M]:
        """Return the events of one kind so far, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def frame_count(self) -> int:
        """Number of frames received so far."""
        return sum(len(chunk.pts) for chunk in self.chunks)

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for data in self.socket:
                message, payload = parse_server(data)
                await self._store(message, payload, time.perf_counter())
        except ConnectionClosed as closed:
            self.events.append(Error(code="connection_lost", message=str(closed)))
        finally:
            async with self._changed:
                self._done = True
                self._changed.notify_all()

    async def _store(self, message: ServerMessage, payload: bytes, received_s: float) -> None:
        self.last_seq = max(self.last_seq, message.seq)
        if isinstance(message, SessionReady | Resumed):
            self.resume_token = message.resume_token
        if isinstance(message, SessionReady):
            self.ready = message
        if isinstance(message, MediaInit):
            self.init, self._decoder = message, ChunkDecoder(payload)
        if isinstance(message, MediaChunk) and self._decoder is not None:
            # Decode off the event loop, as a browser does: this client may share a machine with the server.
            decoded = await asyncio.get_running_loop().run_in_executor(None, self._decoder.decode, payload)
            chunk = ReceivedChunk(
                message=message,
                received_s=received_s,
                decoded_s=time.perf_counter(),
                pts=decoded.pts,
                frames=decoded.frames if self.keep_frames else decoded.frames[:0],
                voice_pts=decoded.voice_pts,
                voice=decoded.voice,
            )
        async with self._changed:
            if isinstance(message, MediaChunk):
                self.chunks.append(chunk)
            else:
                self.events.append(message)
            self._changed.notify_all()


@asynccontextmanager
async def connect(
    url: str,
    token: str,
    *,
    character_id: str | None = None,
    resume: CharacterClient | None = None,
    keep_frames: bool = True,
    origin: str | None = None,
) -> AsyncIterator[CharacterClient]:
    """Open a session, or resume that of another client.

    Args:
        url: `http://host:port` or `ws://host:port` of a server.
        token: the session token that the server printed.
        character_id: the character to show; the first one by default.
        resume: a client whose connection was lost.
        keep_frames: retain decoded frames, so that memory grows; frames are decoded either way.
        origin: value of the Origin header, as a browser sends it.

    Raises:
        RefusedError: the server refused the session.
    """
    from websockets.asyncio.client import connect as connect_socket

    parts = urlsplit(url)
    address = f"{'wss' if parts.scheme in ('https', 'wss') else 'ws'}://{parts.netloc}{STREAM_PATH}"
    async with connect_socket(address, origin=origin, max_size=None, compression=None) as socket:
        client = CharacterClient(socket=socket, keep_frames=keep_frames)
        if resume is None:
            await client.send(SessionOpen(token=token, character_id=character_id))
        else:
            session_id = resume.ready.session_id if resume.ready else ""
            client.ready = resume.ready
            await client.send(
                SessionResume(session_id=session_id, resume_token=resume.resume_token, last_seq=resume.last_seq)
            )
        client._reader = asyncio.create_task(client._read())
        await client.wait(lambda: bool(client.of(SessionReady) or client.of(Resumed) or client.of(Error)), 120.0)
        if not client.of(SessionReady) and not client.of(Resumed):
            raise RefusedError(client.of(Error)[0])
        try:
            yield client
        finally:
            await socket.close()
            await client._reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Everything a viewer received in a smoke conversation."""

    ready: SessionReady
    """The server's `session.ready`."""
    chunks: list[ReceivedChunk]
    """Every chunk."""
    events: list[ServerMessage]
    """Every control event."""
    first_frame_s: float
    """Time from session.open to the first decoded frame."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """All frames, uint8 [T, H, W, 3]."""
        return np.concatenate([chunk.frames for chunk in self.chunks])


async def converse(url: str, token: str, *, user: Pcm, character: Pcm | str, seconds: float) -> Conversation:
    """Hold a short conversation: the user's voice in real time, the character's as one segment, for `seconds`.

    Args:
        url: address of the server.
        token: session token.
        user: int16 [n] at 24 kHz, sent live; silence follows when it is shorter.
        character: int16 [n] at 24 kHz, or a text for the server's own voice.
        seconds: length of the conversation.
    """
    started = time.perf_counter()
    async with connect(url, token) as client:
        await client.wait(lambda: bool(client.chunks))
        first = client.chunks[0].decoded_s - started
        if isinstance(character, str):
            await client.speak(character, segment_id="smoke")
        else:
            for start in range(0, character.size, AUDIO_RATE):
                await client.append_character("smoke", character[start : start + AUDIO_RATE])
            await client.end_segment("smoke")
        await stream_live(client, user, seconds)
        await client.close()
        if client.ready is None:
            raise ConnectionError("the server never sent session.ready")
        return Conversation(ready=client.ready, chunks=client.chunks, events=client.events, first_frame_s=first)


async def stream_live(client: CharacterClient, user: Pcm, seconds: float, *, packet_samples: int = 960) -> None:
    """Send user audio int16 [n] packet by packet at the pace of a microphone, silence after its end, for `seconds`."""
    begin = time.perf_counter()
    for number in range(round(seconds * AUDIO_RATE / packet_samples)):
        packet = user[number * packet_samples : (number + 1) * packet_samples]
        await client.append_user(np.pad(packet, (0, packet_samples - packet.size)))
        wake = begin + (number + 1) * packet_samples / AUDIO_RATE
        await asyncio.sleep(max(0.0, wake - time.perf_counter()))
