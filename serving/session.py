"""One conversation without transport: life cycle, message handling, numbering, replay, resume tokens.

In: parsed client messages. Out: stamped server messages in order. The wall clock is an argument, so every rule here is
testable without waiting; the service (service.py) brings the engine and the sockets.
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
"""Control events kept for replay after a reconnect; media is never replayed."""
REMEMBERED_EVENT_IDS = 512


class Phase(StrEnum):
    """Where a session is in its life."""

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
    """A change of phase that PHASES does not hold: a programming error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextJob:
    """Text that waits to be synthesised into its segment."""

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
        self._told_flow = (-1, 0)

    def enter(self, phase: Phase) -> None:
        """Change the phase, if the table allows it."""
        if phase not in PHASES[self.phase]:
            raise IllegalPhaseError(f"{self.phase} -> {phase}")
        self.phase = phase

    @property
    def over(self) -> bool:
        """Whether nothing can happen any more."""
        return self.phase in (Phase.CLOSED, Phase.EXPIRED)

    def stamp(self, messages: list[ServerMessage]) -> list[ServerMessage]:
        """Number messages in order and remember the control events among them."""
        stamped = []
        for message in messages:
            self._seq += 1
            stamped.append(message.model_copy(update={"seq": self._seq}))
            if not isinstance(message, MediaInit | MediaChunk | Pong | Flow):
                self._journal.append(stamped[-1])
        return stamped

    def new_resume_token(self) -> str:
        """A fresh single-use token; only its hash stays here."""
        token = secrets.token_urlsafe(24)
        self._token_hash = hashlib.sha256(token.encode()).digest()
        return token

    def handle(self, message: ClientMessage, payload: bytes) -> list[ServerMessage]:
        """Apply one client message.

        Raises:
            ProtocolError: the message is legal but cannot be accepted now; the session goes on.
        """
        if message.event_id is not None:
            if message.event_id in self._event_ids:
                text = "this event_id was applied already; the repetition is ignored"
                return self.stamp([Warn(code="duplicate_event", message=text, event_id=message.event_id)])
            self._event_ids[message.event_id] = None
            while len(self._event_ids) > REMEMBERED_EVENT_IDS:
                self._event_ids.popitem(last=False)
        try:
            return self.stamp(self._apply(message, payload))
        except ProtocolError as error:
            if message.event_id is not None and error.retryable:
                del self._event_ids[message.event_id]  # a retry of the same event must not look like a repetition
            error.event_id = error.event_id or message.event_id
            raise

    def next_chunk(self) -> tuple[ChunkInput, list[ServerMessage]]:
        """Advance the media clock by one chunk; events are stamped and in order."""
        chunk, messages = self.duplex.next_chunk()
        while self._prompts and self._prompts[0][0] <= chunk.pts:
            self.prompt = self._prompts.pop(0)[1]
        return chunk, self.stamp([*messages, *self._flow(only_changes=True)])

    def detach(self, now: float) -> None:
        """The connection is gone; the state is kept for the grace time."""
        self.enter(Phase.DETACHED)
        self._detached_at = now

    def expire(self, now: float) -> bool:
        """Whether the grace time is over; if so the session ends here."""
        if self.phase is Phase.DETACHED and now - self._detached_at >= self._config.grace_s:
            self.duplex.close()
            self.enter(Phase.EXPIRED)
            return True
        return False

    def check_resume(self, token: str) -> bool:
        """Whether the single-use token is the right one (constant-time comparison)."""
        given = hashlib.sha256(token.encode()).digest()
        return bool(self._token_hash) and secrets.compare_digest(given, self._token_hash)

    def resume(self, last_seq: int) -> list[ServerMessage] | None:
        """Attach again after `check_resume`: the control events the client missed, or None when they are gone."""
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

    def interrupt_everything(self, played_samples: int | None = None) -> list[ServerMessage]:
        """Silence the character and forget text that waits for its voice."""
        self.text_jobs.clear()
        return self.duplex.interrupt(played_samples)

    def close(self, reason: str) -> list[ServerMessage]:
        """End the session: the owed finishes, then `closed`."""
        self.text_jobs.clear()
        messages = self.duplex.close()
        self.enter(Phase.CLOSED)
        return self.stamp([*messages, Closed(reason=reason)])

    def feed_text(self, segment_id: str, pcm: np.ndarray) -> list[ServerMessage]:
        """Synthesised samples [n] of a text segment."""
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
                return self.interrupt_everything(message.played_samples)
            case PlaybackAck():
                duplex.note_played(message.played_samples)
                return []
            case Ping():
                return [Pong(t=message.t)]
            case SessionClose():
                return []
        raise ProtocolError("unexpected_message", f"{message.__class__.__name__} has no place in a running session")

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
        told = (self.duplex.credits, self.duplex.user.dropped)
        if only_changes and told == self._told_flow:
            return []
        self._told_flow = told
        buffered = self.duplex.buffered_samples
        return [Flow(credits=told[0], buffered_samples=buffered, user_dropped_samples=told[1])]
