"""One conversation without transport: life cycle, message handling, numbering, replay, resume tokens.

Input: parsed client messages. Output: numbered server messages in order. The wall clock is an argument, so every rule
is testable without waiting; `service.py` adds the engine and the transport.
"""

import hashlib
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from serving.config import ServingConfig
from serving.duplex import ChunkInput, Duplex
from serving.protocol import (
    AudioAppend,
    CharacterState,
    ClientMessage,
    Closed,
    Flow,
    Interrupt,
    MediaChunk,
    MediaInit,
    Ping,
    PlaybackAck,
    Pong,
    ProtocolError,
    Resumed,
    SegmentEnd,
    ServerMessage,
    SessionClose,
    TextPrompt,
    TextSpeak,
    Warn,
)

JOURNAL_EVENTS = 1024
"""Control events retained for replay after a reconnect; media is never replayed."""
REMEMBERED_EVENT_IDS = 512


class Phase(StrEnum):
    """Life cycle of a session."""

    INIT = "init"
    QUEUED = "queued"
    READY = "ready"
    DETACHED = "detached"
    EXPIRED = "expired"
    CLOSED = "closed"


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.INIT: frozenset({Phase.QUEUED, Phase.READY, Phase.CLOSED}),
    Phase.QUEUED: frozenset({Phase.READY, Phase.CLOSED}),
    Phase.READY: frozenset({Phase.DETACHED, Phase.CLOSED}),
    Phase.DETACHED: frozenset({Phase.READY, Phase.EXPIRED, Phase.CLOSED}),
    Phase.EXPIRED: frozenset(),
    Phase.CLOSED: frozenset(),
}
"""Every legal change of phase."""


class IllegalPhaseError(AssertionError):
    """A change of phase that PHASES does not list: a programming error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextJob:
    """Text to be synthesised into its segment."""

    segment_id: str
    text: str
    voice: str | None


class Session:
    """The transport-free core of one conversation."""

    def __init__(
        self,
        session_id: str,
        config: ServingConfig,
        *,
        chunk_samples: int,
        lookahead_samples: int,
        pipeline_chunks: int = 0,
    ) -> None:
        self.session_id = session_id
        self.phase = Phase.INIT
        self.duplex = Duplex(
            config,
            chunk_samples=chunk_samples,
            lookahead_samples=lookahead_samples,
            pipeline_chunks=pipeline_chunks,
        )
        self.prompt = ""
        self.text_jobs: deque[TextJob] = deque()
        self._config = config
        self._seq = 0
        self._journal: deque[ServerMessage] = deque(maxlen=JOURNAL_EVENTS)
        self._event_ids: OrderedDict[str, None] = OrderedDict()
        self._prompts: list[tuple[int, str]] = []
        self._token_hash = b""
        self._detached_at = 0.0
        self._sent_flow = (-1, 0)

    def enter(self, phase: Phase) -> None:
        """Change the phase; raise IllegalPhaseError for a change that PHASES does not list."""
        if phase not in PHASES[self.phase]:
            raise IllegalPhaseError(f"{self.phase} -> {phase}")
        self.phase = phase

    @property
    def over(self) -> bool:
        """Whether the session has ended."""
        return self.phase in (Phase.CLOSED, Phase.EXPIRED)

    @property
    def position(self) -> int:
        """Media time (samples) of the next chunk."""
        return self.duplex.position

    @property
    def state(self) -> CharacterState:
        """State of the character."""
        return self.duplex.state

    @property
    def busy(self) -> bool:
        """Whether a segment has not had its `playback.finished` yet."""
        return self.duplex.busy

    @property
    def credits(self) -> int:
        """Character audio (samples) that may still be appended."""
        return self.duplex.credits

    @property
    def user_buffered(self) -> int:
        """User samples that wait in the jitter buffer."""
        return self.duplex.user_buffered

    def is_live(self, segment_id: str) -> bool:
        """Whether the segment still accepts audio."""
        return self.duplex.is_live(segment_id)

    def is_stale(self, chunk: ChunkInput) -> bool:
        """Whether an interruption came after this chunk was handed to the model, so that its voice must be muted."""
        return chunk.epoch != self.duplex.epoch

    def stamp(self, messages: list[ServerMessage]) -> list[ServerMessage]:
        """Number messages in order and record the control events among them for replay."""
        stamped = []
        for message in messages:
            self._seq += 1
            stamped.append(message.model_copy(update={"seq": self._seq}))
            if not isinstance(message, MediaInit | MediaChunk | Pong | Flow):
                self._journal.append(stamped[-1])
        return stamped

    def new_resume_token(self) -> str:
        """Return a new single-use token; the session stores only its hash."""
        token = secrets.token_urlsafe(24)
        self._token_hash = hashlib.sha256(token.encode()).digest()
        return token

    def handle(self, message: ClientMessage, payload: bytes) -> list[ServerMessage]:
        """Apply one client message.

        Raises:
            ProtocolError: the message is valid but cannot be accepted now; the session continues.
        """
        if message.event_id is not None:
            if message.event_id in self._event_ids:
                text = "this event_id has already been applied; the repetition is ignored"
                return self.stamp([Warn(code="duplicate_event", message=text, event_id=message.event_id)])
            self._event_ids[message.event_id] = None
            while len(self._event_ids) > REMEMBERED_EVENT_IDS:
                self._event_ids.popitem(last=False)
        try:
            return self.stamp(self._apply(message, payload))
        except ProtocolError as error:
            if message.event_id is not None and error.retryable:
                del self._event_ids[message.event_id]  # a retry of the same event must not count as a repetition
            error.event_id = error.event_id or message.event_id
            raise

    def next_chunk(self) -> tuple[ChunkInput, list[ServerMessage]]:
        """Advance the media clock by one chunk; the events are numbered and in order."""
        chunk, messages = self.duplex.next_chunk()
        while self._prompts and self._prompts[0][0] <= chunk.pts:
            self.prompt = self._prompts.pop(0)[1]
        return chunk, self.stamp([*messages, *self._flow(only_changes=True)])

    def detach(self, now: float) -> None:
        """Detach the lost connection; the state is retained for the grace time."""
        self.enter(Phase.DETACHED)
        self._detached_at = now

    def expire(self, now: float) -> bool:
        """End the session if its grace time is over; return whether it did."""
        if self.phase is Phase.DETACHED and now - self._detached_at >= self._config.grace_s:
            self.duplex.close()
            self.enter(Phase.EXPIRED)
            return True
        return False

    def check_resume(self, token: str) -> bool:
        """Return whether the single-use token is valid (constant-time comparison)."""
        given = hashlib.sha256(token.encode()).digest()
        return bool(self._token_hash) and secrets.compare_digest(given, self._token_hash)

    def resume(self, last_seq: int) -> list[ServerMessage] | None:
        """Reattach after `check_resume`; return the control events that the client missed, or None if they are lost."""
        if self.phase is Phase.DETACHED:
            self.enter(Phase.READY)
        missed = [m for m in self._journal if m.seq > last_seq]
        oldest = self._journal[0].seq if len(self._journal) == JOURNAL_EVENTS else 0
        if last_seq > self._seq or (oldest and last_seq < oldest - 1):
            return None
        state = self.duplex.state
        token = self.new_resume_token()
        resumed = Resumed(session_id=self.session_id, resume_token=token, state=state, pts_samples=self.duplex.position)
        return [*missed, *self.stamp([resumed])]

    def interrupt(self, played_samples: int | None = None) -> list[ServerMessage]:
        """Silence the character (see `Duplex.interrupt`) and drop text that has not been synthesised yet."""
        self.text_jobs.clear()
        return self.duplex.interrupt(played_samples)

    def close(self, reason: str) -> list[ServerMessage]:
        """End the session; return the outstanding finishes, then `closed`."""
        self.text_jobs.clear()
        messages = self.duplex.close()
        self.enter(Phase.CLOSED)
        return self.stamp([*messages, Closed(reason=reason)])

    def drain(self) -> list[ServerMessage]:
        """Accept no new segment; accepted audio is still spoken."""
        return self.duplex.drain()

    def end_text(self, segment_id: str) -> None:
        """Mark a text segment as completely synthesised."""
        self.duplex.end_segment(segment_id)

    def feed_text(self, segment_id: str, pcm: np.ndarray) -> list[ServerMessage]:
        """Queue synthesised samples [n] of a text segment."""
        return self.stamp([*self.duplex.append_character(segment_id, pcm), *self._flow(only_changes=False)])

    def _apply(self, message: ClientMessage, payload: bytes) -> list[ServerMessage]:
        duplex = self.duplex
        match message:
            case AudioAppend(role="user"):
                duplex.append_user(np.frombuffer(payload, "<i2"))
                return []
            case AudioAppend():
                opened = duplex.append_character(message.segment_id or "", np.frombuffer(payload, "<i2"))
                return [*opened, *self._flow(only_changes=False)]
            case SegmentEnd():
                duplex.end_segment(message.segment_id)
                return []
            case TextSpeak():
                return self._speak_text(message)
            case TextPrompt():
                self._bounded(message.prompt)
                at = duplex.position if message.at_samples is None else message.at_samples
                self._prompts = sorted([*self._prompts[-15:], (at, message.prompt)], key=lambda item: item[0])
                return []
            case Interrupt():
                return self.interrupt(message.played_samples)
            case PlaybackAck():
                duplex.note_played(message.played_samples)
                return []
            case Ping():
                return [Pong(t=message.t)]
            case SessionClose():
                return []
        raise ProtocolError("unexpected_message", f"{message.__class__.__name__} is not valid in a running session")

    def _speak_text(self, message: TextSpeak) -> list[ServerMessage]:
        self._bounded(message.text)
        segment_id = message.segment_id or f"text-{secrets.token_hex(4)}"
        opened = self.duplex.open_segment(segment_id, owned=True, event_id=message.event_id)
        self.text_jobs.append(TextJob(segment_id=segment_id, text=message.text, voice=message.voice))
        return opened

    def _bounded(self, text: str) -> None:
        if len(text) > self._config.max_text_chars:
            limit = self._config.max_text_chars
            raise ProtocolError("too_large", f"text has {len(text)} characters; send at most {limit} at a time")

    def _flow(self, *, only_changes: bool) -> list[ServerMessage]:
        flow = (self.duplex.credits, self.duplex.user_dropped)
        if only_changes and flow == self._sent_flow:
            return []
        self._sent_flow = flow
        buffered = self.duplex.buffered_samples
        return [Flow(credits=flow[0], buffered_samples=buffered, user_dropped_samples=flow[1])]
