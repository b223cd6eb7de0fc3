"""The full-duplex core: two audio roles on one sample clock, segments, and what the character is doing.

In: user audio, character audio by segment, interruptions. Out: for every chunk the audio windows of both roles and the
state, and the events that belong to it. No transport, no wall clock, no thread: whoever calls `next_chunk` moves time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lpm_model.config import AUDIO_RATE
from serving.config import ServingConfig
from serving.media.audio import Pcm, SampleQueue, UserBuffer
from serving.protocol import (
    CharacterState,
    PlaybackFinished,
    PlaybackStarted,
    ProtocolError,
    SegmentOpened,
    ServerMessage,
    State,
)

_S = CharacterState
USER_SURPLUS = AUDIO_RATE * 80 // 1000
"""User audio (80 ms) that may lie ready against network jitter."""
ACK_TRUST = 2 * AUDIO_RATE
"""A viewer's playback may be said to lag by this much (2 s); a finish is never held back longer."""
TRANSITIONS: dict[CharacterState, frozenset[CharacterState]] = {
    _S.IDLE: frozenset({_S.LISTENING, _S.SPEAKING, _S.INTERRUPTING, _S.DRAINING}),
    _S.LISTENING: frozenset({_S.IDLE, _S.SPEAKING, _S.INTERRUPTING, _S.DRAINING}),
    _S.SPEAKING: frozenset({_S.IDLE, _S.LISTENING, _S.INTERRUPTING, _S.DRAINING}),
    _S.INTERRUPTING: frozenset({_S.IDLE, _S.LISTENING, _S.SPEAKING, _S.DRAINING}),
    _S.DRAINING: frozenset(),
}
"""Every legal change of state; draining is final."""


class IllegalTransitionError(AssertionError):
    """The state machine was asked for a change that TRANSITIONS does not hold: a programming error."""


@dataclass(kw_only=True, slots=True, eq=False)
class Segment:
    """One utterance of the character."""

    segment_id: str
    owned: bool
    """The server itself feeds and ends it (text), so a newer segment queues behind it instead of superseding it."""
    queue: SampleQueue = field(default_factory=SampleQueue)
    ended: bool = False
    consumed: int = 0
    started_pts: int | None = None
    end_pts: int = 0
    """Media time just after its last emitted sample."""
    flowing: bool = False

    def ready(self, window: int) -> bool:
        """Whether it may sound now: enough is buffered, or no more will come."""
        return len(self.queue) > 0 and (self.flowing or self.ended or len(self.queue) >= window)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInput:
    """What one step of the model needs."""

    pts: int
    """Media time (samples) of the chunk's first sample."""
    speak: Pcm
    """The character's voice [chunk + lookahead]."""
    listen: Pcm
    """The user's voice [chunk + lookahead]."""
    state: CharacterState
    segment_id: str | None
    user_position: int
    """User samples that the model has passed once this chunk is out."""
    epoch: int
    """Number of interruptions so far: audio of an older epoch must no longer sound."""


class Duplex:
    """State machine idle / listening / speaking / interrupting / draining over the two audio roles."""

    def __init__(
        self, config: ServingConfig, *, chunk_samples: int, lookahead_samples: int, pipeline_chunks: int = 0
    ) -> None:
        self._config = config
        self.chunk_samples, self.lookahead_samples = chunk_samples, lookahead_samples
        self.pipeline_chunks = pipeline_chunks
        self.user = UserBuffer(
            capacity=config.user_buffer_samples,
            chunk=chunk_samples,
            lookahead=lookahead_samples,
            surplus=USER_SURPLUS,
        )
        self.state = CharacterState.IDLE
        self.position = 0
        self.epoch = 0
        self._segments: list[Segment] = []
        self._played_out: list[Segment] = []
        self._finished: dict[str, None] = {}
        self._silent_for = 1 << 40
        self._interrupt_pending = False
        self._played: int | None = None

    @property
    def buffered_samples(self) -> int:
        """Character audio that waits to be spoken."""
        return sum(len(segment.queue) for segment in self._segments)

    @property
    def credits(self) -> int:
        """Character audio that may still be appended."""
        return max(0, self._config.character_buffer_samples - self.buffered_samples)

    @property
    def busy(self) -> bool:
        """Whether any segment is still owed its `playback.finished`."""
        return bool(self._segments or self._played_out)

    def is_live(self, segment_id: str) -> bool:
        """Whether the segment still accepts audio."""
        return any(s.segment_id == segment_id and not s.ended for s in self._segments)

    def append_user(self, pcm: Pcm) -> int:
        """Live user samples [n]; returns how many old samples were dropped."""
        return self.user.append(pcm)

    def open_segment(self, segment_id: str, *, owned: bool, event_id: str | None = None) -> list[ServerMessage]:
        """Announce a segment; an open one that a client streams is superseded, one that the server feeds is not.

        Raises:
            ProtocolError: `draining`, `segment_exists` or `resource_exhausted`.
        """
        if self.state is CharacterState.DRAINING:
            raise ProtocolError("draining", "the session is ending and takes no new segment", event_id=event_id)
        if segment_id in self._finished or any(s.segment_id == segment_id for s in self._everything()):
            raise ProtocolError("segment_exists", f"segment {segment_id} exists; choose a new id", event_id=event_id)
        if len(self._segments) >= self._config.max_segments:
            text = f"{len(self._segments)} segments wait already; wait for playback.finished"
            raise ProtocolError("resource_exhausted", text, event_id=event_id, retryable=True)
        messages: list[ServerMessage] = []
        for old in [s for s in self._segments if not s.ended and not s.owned]:
            messages.append(self._finish(old, interrupted=True, playhead=self._playhead))
        self._segments.append(Segment(segment_id=segment_id, owned=owned))
        return [*messages, SegmentOpened(segment_id=segment_id, event_id=event_id)]

    def append_character(self, segment_id: str, pcm: Pcm) -> list[ServerMessage]:
        """Samples [n] of a segment, which is opened by its first audio; audio of a finished one is dropped by id.

        Raises:
            ProtocolError: `input_backpressure` beyond the credits, `segment_ended`, or what `open_segment` raises.
        """
        if segment_id in self._finished:
            return []
        if pcm.size > self.credits:
            text = f"{pcm.size} samples exceed the {self.credits} credits; wait for `flow`"
            raise ProtocolError("input_backpressure", text, retryable=True)
        segment = next((s for s in self._segments if s.segment_id == segment_id), None)
        messages = [] if segment else self.open_segment(segment_id, owned=False)
        segment = segment or self._segments[-1]
        if segment.ended:
            raise ProtocolError("segment_ended", f"segment {segment_id} has had its segment.end; use a new id")
        segment.queue.append(pcm)
        return messages

    def end_segment(self, segment_id: str) -> None:
        """No more audio will come for this segment; unknown and finished ids are ignored, as they race with events."""
        for segment in self._segments:
            if segment.segment_id == segment_id:
                segment.ended = True

    def note_played(self, played_samples: int) -> None:
        """How far the client has really played on the media clock: finishes and positions follow it."""
        self._played = min(max(played_samples, self._played or 0), self.position)

    def interrupt(self, played_samples: int | None = None) -> list[ServerMessage]:
        """Silence the character: every segment finishes now, and the next chunk closes the mouth.

        Args:
            played_samples: how far the client has played on the media clock; the playhead is assumed if absent.
        """
        if not self.busy:
            return []
        self.epoch += 1
        playhead = self._playhead if played_samples is None else min(played_samples, self.position)
        messages = self._finish_all(playhead)
        if self.state is not CharacterState.DRAINING:
            self._interrupt_pending = True
            messages += self._enter(CharacterState.INTERRUPTING)
        return messages

    def drain(self) -> list[ServerMessage]:
        """Take no new segment; what was accepted is still spoken, streamed segments with what they have."""
        for segment in self._segments:
            segment.ended = segment.ended or not segment.owned
        return self._enter(CharacterState.DRAINING)

    def close(self) -> list[ServerMessage]:
        """The session is over: every segment that is still owed its finish gets it."""
        self.epoch += 1
        return self._finish_all(self._playhead)

    def next_chunk(self) -> tuple[ChunkInput, list[ServerMessage]]:
        """Advance the clock by one chunk: what the model shall hear, and the events that go out before its picture."""
        messages: list[ServerMessage] = [
            self._finish(s, interrupted=False, playhead=self._playhead)
            for s in list(self._played_out)
            if s.end_pts <= self._playhead
        ]
        closing, self._interrupt_pending = self._interrupt_pending, False
        speak = np.zeros(self.chunk_samples + self.lookahead_samples, np.int16)
        spoken_id: str | None = None
        if not closing:
            spoken_id, drawn = self._draw_speech(speak)
            messages += drawn
        listen, _ = self.user.take()
        self._hear(listen[: self.chunk_samples])
        messages += self._enter(self._decide(spoken_id, closing=closing))
        chunk = ChunkInput(
            pts=self.position,
            speak=speak,
            listen=listen,
            state=self.state,
            segment_id=spoken_id,
            user_position=self.user.position,
            epoch=self.epoch,
        )
        self.position += self.chunk_samples
        return chunk, messages

    @property
    def _playhead(self) -> int:
        """Where playback is: one chunk behind what the model has finished, or as far behind as the client says."""
        paced = max(0, self.position - (1 + self.pipeline_chunks) * self.chunk_samples)
        return paced if self._played is None else min(paced, max(self._played, paced - ACK_TRUST))

    def _everything(self) -> Sequence[Segment]:
        return [*self._played_out, *self._segments]

    def _finish_all(self, playhead: int) -> list[ServerMessage]:
        return [self._finish(segment, interrupted=True, playhead=playhead) for segment in self._everything()]

    def _draw_speech(self, window: Pcm) -> tuple[str | None, list[ServerMessage]]:
        """Fill the window from the queued segments; only samples inside the chunk are consumed."""
        at, spoken_id = 0, None
        messages: list[ServerMessage] = []
        for segment in list(self._segments):
            whole = False
            if segment.ready(window.size - at):
                heard = segment.queue.peek(window.size - at)
                whole = heard.size == len(segment.queue)
                window[at : at + heard.size] = heard
                inside = min(heard.size, max(0, self.chunk_samples - at))
                if inside:
                    messages += self._consume(segment, inside, self.position + at)
                    spoken_id = spoken_id or segment.segment_id
                at += heard.size
            segment.flowing = segment.flowing and len(segment.queue) > 0
            if segment.ended and not segment.queue:
                self._segments.remove(segment)
                segment.end_pts = max(segment.end_pts, self._playhead)
                self._played_out.append(segment)
            elif not (segment.ended and whole and at < window.size):
                break
        return spoken_id, messages

    def _consume(self, segment: Segment, count: int, pts: int) -> list[ServerMessage]:
        messages: list[ServerMessage] = []
        segment.queue.drop(count)
        segment.consumed += count
        segment.flowing = True
        segment.end_pts = pts + count
        if segment.started_pts is None:
            segment.started_pts = pts
            # A predecessor that ended inside this very chunk is told first: apps expect finish before the next start.
            for old in list(self._played_out):
                messages.append(self._finish(old, interrupted=False, playhead=old.end_pts))
            messages.append(PlaybackStarted(segment_id=segment.segment_id, pts_samples=pts))
        return messages

    def _finish(self, segment: Segment, *, interrupted: bool, playhead: int) -> PlaybackFinished:
        """The one place that ends a segment, so that it ends once."""
        (self._segments if segment in self._segments else self._played_out).remove(segment)
        self._finished[segment.segment_id] = None
        while len(self._finished) > 4096:
            del self._finished[next(iter(self._finished))]
        unheard = max(0, segment.end_pts - playhead)
        position = max(0, segment.consumed - unheard) if interrupted else segment.consumed
        return PlaybackFinished(segment_id=segment.segment_id, position_samples=position, interrupted=interrupted)

    def _hear(self, pcm: Pcm) -> None:
        level = float(np.sqrt(np.mean(np.square(pcm.astype(np.float32) / 32768.0)))) if pcm.size else 0.0
        self._silent_for = 0 if level > self._config.silence_rms else self._silent_for + self.chunk_samples

    def _decide(self, spoken_id: str | None, *, closing: bool) -> CharacterState:
        if self.state is CharacterState.DRAINING:
            return CharacterState.DRAINING
        if spoken_id is not None:
            return CharacterState.SPEAKING
        if closing:
            return CharacterState.INTERRUPTING
        starved = bool(self._segments) and self._segments[0].started_pts is not None
        attentive = self._silent_for <= self._config.listening_hold_s * AUDIO_RATE
        return CharacterState.LISTENING if starved or attentive else CharacterState.IDLE

    def _enter(self, state: CharacterState) -> list[ServerMessage]:
        previous = self.state
        if state is previous:
            return []
        if state not in TRANSITIONS[previous]:
            raise IllegalTransitionError(f"{previous} -> {state}")
        self.state = state
        return [State(state=state, previous=previous, pts_samples=self.position)]
