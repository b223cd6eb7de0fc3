"""Wire protocol: one pydantic model per message, one discriminated union per direction, and the binary framing.

Text frames carry one JSON message. A binary frame carries a message with a payload (PCM16 little-endian mono audio,
fMP4 bytes) as: u32 little-endian length of the JSON header, the header, the payload. All time stamps are integers in
samples of one media clock at 24 kHz. Every server message has an increasing `seq`; a client message may carry an
`event_id`, and a repeated one is ignored.
"""

import base64
import binascii
import json
import struct
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

PROTOCOL_VERSION = 1
STREAM_PATH = "/v1/character/stream"
MAX_HEADER_BYTES = 4096
"""Largest JSON header of a client's binary frame."""
_LENGTH = struct.Struct("<I")

Identifier = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:-]+$")]
Role = Literal["user", "character"]


class CharacterState(StrEnum):
    """State of the character."""

    IDLE = "idle"
    LISTENING = "listening"
    SPEAKING = "speaking"
    INTERRUPTING = "interrupting"
    DRAINING = "draining"


class ProtocolError(ValueError):
    """A client message that cannot be accepted; `code` is the documented error code."""

    def __init__(self, code: str, message: str, *, event_id: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.event_id = event_id
        self.retryable = retryable


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientMessage(_Message):
    """Fields that every client message may carry."""

    event_id: Identifier | None = None


class VideoRequest(_Message):
    """What the client can show; the character is served in its own size whatever is requested."""

    w: int | None = Field(default=None, ge=16, le=4096)
    h: int | None = Field(default=None, ge=16, le=4096)
    fps: int | None = Field(default=None, ge=1, le=120)
    codec: Literal["h264"] = "h264"


class AudioRequest(_Message):
    """The audio format of both roles."""

    rate: Literal[24000] = 24000
    format: Literal["pcm16"] = "pcm16"


class SessionOpen(ClientMessage):
    type: Literal["session.open"] = "session.open"
    protocol: int = PROTOCOL_VERSION
    character_id: Identifier | None = None
    token: str | None = Field(default=None, max_length=256)
    video: VideoRequest = VideoRequest()
    audio: AudioRequest = AudioRequest()
    caps: list[Annotated[str, Field(max_length=32)]] = Field(default_factory=list, max_length=16)


class SessionResume(ClientMessage):
    type: Literal["session.resume"] = "session.resume"
    session_id: Identifier
    resume_token: str = Field(max_length=256)
    last_seq: int = Field(ge=0)


class SessionClose(ClientMessage):
    type: Literal["session.close"] = "session.close"


class AudioAppend(ClientMessage):
    """Audio of one role: as the payload of a binary frame, or base64 in `b64`."""

    type: Literal["audio.append"] = "audio.append"
    role: Role
    seq: int | None = Field(default=None, ge=0)
    pts_samples: int | None = Field(default=None, ge=0)
    segment_id: Identifier | None = None
    b64: str | None = None


class SegmentEnd(ClientMessage):
    type: Literal["segment.end"] = "segment.end"
    segment_id: Identifier


class TextSpeak(ClientMessage):
    """Text for the server to synthesise: one segment of role `character`."""

    type: Literal["text.speak"] = "text.speak"
    text: str = Field(min_length=1)
    voice: str | None = Field(default=None, min_length=1, max_length=64)
    segment_id: Identifier | None = None


class TextPrompt(ClientMessage):
    """Prompt that steers the performance from `at_samples` on (from now on if absent)."""

    type: Literal["text.prompt"] = "text.prompt"
    prompt: str
    at_samples: int | None = Field(default=None, ge=0)


class Interrupt(ClientMessage):
    type: Literal["interrupt"] = "interrupt"
    reason: str = Field(default="user", max_length=64)
    played_samples: int | None = Field(default=None, ge=0)


class PlaybackAck(ClientMessage):
    """How far the client has played on the media clock."""

    type: Literal["playback.ack"] = "playback.ack"
    segment_id: Identifier | None = None
    played_samples: int = Field(ge=0)


class Ping(ClientMessage):
    type: Literal["ping"] = "ping"
    t: int | None = None


AnyClientMessage = Annotated[
    SessionOpen
    | SessionResume
    | SessionClose
    | AudioAppend
    | SegmentEnd
    | TextSpeak
    | TextPrompt
    | Interrupt
    | PlaybackAck
    | Ping,
    Field(discriminator="type"),
]


class ServerMessage(_Message):
    """Fields that every server message carries; the session assigns `seq`."""

    seq: int = 0


class SessionQueued(ServerMessage):
    type: Literal["session.queued"] = "session.queued"
    position: int
    eta_ms: int | None = None


class Limits(_Message):
    """Limits that a client must respect."""

    user_buffer_samples: int
    character_buffer_samples: int
    max_message_bytes: int
    max_text_chars: int
    grace_ms: int


class SessionReady(ServerMessage):
    type: Literal["session.ready"] = "session.ready"
    session_id: str
    resume_token: str
    character_id: str
    character_name: str
    characters: list[str]
    voices: list[str]
    fps: int
    size_px: int
    sample_rate: int
    chunk_samples: int
    limits: Limits
    model_uri: str
    model_digest: str
    disclosure: str


class Resumed(ServerMessage):
    type: Literal["resumed"] = "resumed"
    session_id: str
    resume_token: str
    state: CharacterState
    pts_samples: int


class ResyncRequired(ServerMessage):
    type: Literal["resync_required"] = "resync_required"
    reason: str


class Replaced(ServerMessage):
    type: Literal["replaced"] = "replaced"
    reason: str = "another connection took the session over"


class MediaInit(ServerMessage):
    """The fMP4 initialisation segment (payload); sent again after a resume."""

    type: Literal["media.init"] = "media.init"
    mime: str
    width: int
    height: int
    fps: int
    timescale: int
    pts_samples: int


class MediaChunk(ServerMessage):
    """One fMP4 media segment (payload) and the character's state during it."""

    type: Literal["media.chunk"] = "media.chunk"
    pts_samples: int
    duration_samples: int
    state: CharacterState
    segment_id: str | None = None
    user_samples: int
    """User audio (samples since the session began) that the model has consumed by the end of this chunk."""
    user_buffered_samples: int
    compute_ms: float
    watermark_id: str | None = None


class SegmentOpened(ServerMessage):
    type: Literal["segment.opened"] = "segment.opened"
    segment_id: str
    event_id: str | None = None


class PlaybackStarted(ServerMessage):
    type: Literal["playback.started"] = "playback.started"
    segment_id: str
    pts_samples: int


class PlaybackFinished(ServerMessage):
    type: Literal["playback.finished"] = "playback.finished"
    segment_id: str
    position_samples: int
    interrupted: bool


class State(ServerMessage):
    type: Literal["state"] = "state"
    state: CharacterState
    previous: CharacterState
    pts_samples: int


class Flow(ServerMessage):
    """Character audio (samples) that may still be sent, and how much is buffered."""

    type: Literal["flow"] = "flow"
    credits: int
    buffered_samples: int
    user_dropped_samples: int = 0


class Pong(ServerMessage):
    type: Literal["pong"] = "pong"
    t: int | None = None


class Warn(ServerMessage):
    type: Literal["warning"] = "warning"
    code: str
    message: str
    event_id: str | None = None


class Error(ServerMessage):
    type: Literal["error"] = "error"
    code: str
    message: str
    retryable: bool = False
    retry_after_ms: int | None = None
    event_id: str | None = None


class GoingAway(ServerMessage):
    type: Literal["going_away"] = "going_away"
    deadline_ms: int
    reason: str


class Closed(ServerMessage):
    type: Literal["closed"] = "closed"
    reason: str


AnyServerMessage = Annotated[
    SessionQueued
    | SessionReady
    | Resumed
    | ResyncRequired
    | Replaced
    | MediaInit
    | MediaChunk
    | SegmentOpened
    | PlaybackStarted
    | PlaybackFinished
    | State
    | Flow
    | Pong
    | Warn
    | Error
    | GoingAway
    | Closed,
    Field(discriminator="type"),
]

_CLIENT: TypeAdapter[Any] = TypeAdapter(AnyClientMessage)
_SERVER: TypeAdapter[Any] = TypeAdapter(AnyServerMessage)


def pack(message: ClientMessage | ServerMessage, payload: bytes) -> bytes:
    """Build a binary frame: header length, header, payload."""
    header = message.model_dump_json(exclude_none=True).encode()
    return b"".join((_LENGTH.pack(len(header)), header, payload))


def unpack(frame: bytes, *, max_header: int = MAX_HEADER_BYTES) -> tuple[str, bytes]:
    """Split a binary frame into its JSON header and its payload.

    Raises:
        ProtocolError: `bad_frame` if the lengths do not match.
    """
    if len(frame) < _LENGTH.size:
        raise ProtocolError("bad_frame", f"a binary frame of {len(frame)} bytes has no header; send u32 length first")
    (length,) = _LENGTH.unpack_from(frame)
    if length > max_header or _LENGTH.size + length > len(frame):
        raise ProtocolError("bad_frame", f"header length {length} does not fit a frame of {len(frame)} bytes")
    end = _LENGTH.size + length
    try:
        return frame[_LENGTH.size : end].decode(), frame[end:]
    except UnicodeDecodeError as error:
        raise ProtocolError("bad_frame", "the header is not UTF-8") from error


def _parse(adapter: TypeAdapter[Any], text: str) -> Any:
    try:
        raw = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ProtocolError("bad_message", f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ProtocolError("bad_message", "a message is one JSON object")
    event_id = raw.get("event_id")
    try:
        return adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        known = first["type"] not in ("union_tag_invalid", "union_tag_not_found")
        where = ".".join(str(part) for part in first["loc"][1:])
        text = f"{where}: {first['msg']}" if known else first["msg"]
        safe_id = event_id if isinstance(event_id, str) and len(event_id) <= 64 else None
        code = "invalid_field" if known else "unknown_message"
        raise ProtocolError(code, text[:300], event_id=safe_id) from error


def parse_client(data: str | bytes) -> tuple[Any, bytes]:
    """Parse a client frame, text or binary.

    Returns:
        The message and its payload; audio sent as base64 is returned as payload too.

    Raises:
        ProtocolError: `bad_message`, `bad_frame`, `unknown_message`, `invalid_field` or `bad_audio`.
    """
    text, payload = (data, b"") if isinstance(data, str) else unpack(data)
    message = _parse(_CLIENT, text)
    if isinstance(message, AudioAppend):
        if message.b64 is not None:
            try:
                payload = base64.b64decode(message.b64, validate=True)
            except binascii.Error as error:
                raise ProtocolError("bad_audio", f"b64: {error}", event_id=message.event_id) from error
        if not payload or len(payload) % 2:
            text = f"{len(payload)} bytes of audio are not PCM16; send an even, non-zero number"
            raise ProtocolError("bad_audio", text, event_id=message.event_id)
        if message.role == "character" and message.segment_id is None:
            raise ProtocolError("invalid_field", "segment_id: required for role character", event_id=message.event_id)
    elif payload:
        raise ProtocolError("bad_frame", f"{message.type} takes no payload", event_id=message.event_id)
    return message, payload


def parse_server(data: str | bytes) -> tuple[Any, bytes]:
    """Parse a server frame, text or binary; return the message and its payload."""
    text, payload = (data, b"") if isinstance(data, str) else unpack(data, max_header=1 << 20)
    return _parse(_SERVER, text), payload
