"""The full-duplex core: two audio roles on one sample clock, segments, and what the character is doing.

Input: user audio, character audio by segment, interruptions. Output: for every chunk the audio windows of both roles,
the state and the events that belong to it. No transport, no wall clock, no thread: `next_chunk` advances the clock.

An interruption becomes silence in `Duplex.interrupt` (drops queued character audio) and `Duplex.next_chunk` (the chunk
after it is silent); `service._one_chunk` mutes the chunks that the model was computing meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lpm_model.config import AUDIO_RATE
from serving.config import ServingConfig
from serving.media.audio import Pcm, SampleQueue, UserBuffer, rms
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
"""User audio (80 ms) that may be buffered against network jitter."""
ACK_TRUST = 2 * AUDIO_RATE
"""Largest playback lag (2 s) that a client's ack can claim; `playback.finished` is never delayed longer."""
TRANSITIONS: dict[CharacterState, frozenset[CharacterState]] = {
    _S.IDLE: frozenset({_S.LISTENING, _S.SPEAKING, _S.INTERRUPTING, _S.DRAINING}),
    _S.LISTENING: frozenset({_S.IDLE, _S.SPEAKING, _S.INTERRUPTING, _S.DRAINING}),
    _S.SPEAKING: frozenset({_S.IDLE, _S.LISTENING, _S.INTERRUPTING, _S.DRAINING}),
    _S.INTERRUPTING: frozenset({_S.IDLE, _S.LISTENING, _S.SPEAKING, _S.DRAINING}),
    _S.DRAINING: frozenset(),
}
"""Every legal state transition; draining is final."""


class IllegalTransitionError(AssertionError):
    """A state transition that TRANSITIONS does not list: a programming error."""


@dataclass(kw_only=True, slots=True, eq=False)
class Segment:
    """One utterance of the character."""

    segment_id: str
    owned: bool
    """Fed and ended by the server itself (text), so a newer segment queues behind it instead of superseding it."""
    queue: SampleQueue = field(default_factory=SampleQueue)
    ended: bool = False
    consumed: int = 0
    started_pts: int | None = None
    end_pts: int = 0
    """Media time just after its last emitted sample."""
    flowing: bool = False

    def ready(self, window: int) -> bool:
        """Whether it can play now: enough is buffered, or no more will arrive."""
        return len(self.queue) > 0 and (self.flowing or self.ended or len(self.queue) >= window)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInput:
    """Input of one model step."""

    pts: int
    """Media time (samples) of the chunk's first sample."""
    speak: Pcm
    """The character's voice [chunk + lookahead]."""
    listen: Pcm
    """The user's voice [chunk + lookahead]."""
    state: CharacterState
    segment_id: str | None
    user_position: int
    """User samples that the model has consumed by the end of this chunk."""
    user_dropped: int
    """User samples dropped as too old since the previous chunk."""
    epoch: int
    """Number of interruptions so far: audio of an older epoch must not be played any more."""


class Duplex:
    """State machine idle / listening / speaking / interrupting / draining over the two audio roles."""

    def __init__(
        self, config: ServingConfig, *, chunk_samples: int, lookahead_samples: int, pipeline_chunks: int = 0
    ) -> None:
        self._config = config
        self.chunk_samples, self.lookahead_samples = chunk_samples, lookahead_samples
        self.pipeline_chunks = pipeline_chunks
        self._user = UserBuffer(
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
        self._silence_next_chunk = False
        self._played: int | None = None
        self._dropped_before = 0

    @property
    def buffered_samples(self) -> int:
        """Character audio that is queued to be spoken."""
        return sum(len(segment.queue) for segment in self._segments)

    @property
    def credits(self) -> int:
        """Character audio that may still be appended."""
        return max(0, self._config.character_buffer_samples - self.buffered_samples)

    @property
    def busy(self) -> bool:
        """Whether a segment has not had its `playback.finished` yet."""
        return bool(self._segments or self._played_out)

    @property
    def user_buffered(self) -> int:
        """User samples that wait in the jitter buffer."""
        return len(self._user)

    @property
    def user_dropped(self) -> int:
        """User samples dropped as too old since the session began."""
        return self._user.dropped

    def is_live(self, segment_id: str) -> bool:
        """Whether the segment still accepts audio."""
        return any(s.segment_id == segment_id and not s.ended for s in self._segments)

    def append_user(self, pcm: Pcm) -> int:
        """Add live user samples [n]; return how many old samples were dropped."""
        return self._user.append(pcm)

    def open_segment(self, segment_id: str, *, owned: bool, event_id: str | None = None) -> list[ServerMessage]:
        """Open a segment; it supersedes an open one that the client streams, but not one that the server feeds.

        Raises:
            ProtocolError: `draining`, `segment_exists` or `resource_exhausted`.
        """
        if self.state is CharacterState.DRAINING:
            raise ProtocolError("draining", "the session is ending and accepts no new segment", event_id=event_id)
        if segment_id in self._finished or any(s.segment_id == segment_id for s in self._everything()):
            raise ProtocolError("segment_exists", f"segment {segment_id} exists; choose a new id", event_id=event_id)
        if len(self._segments) >= self._config.max_segments:
            text = f"{len(self._segments)} segments are queued already; wait for playback.finished"
            raise ProtocolError("resource_exhausted", text, event_id=event_id, retryable=True)
        messages: list[ServerMessage] = []
        for old in [s for s in self._segments if not s.ended and not s.owned]:
            messages.append(self._finish(old, interrupted=True, playhead=self._playhead))
        self._segments.append(Segment(segment_id=segment_id, owned=owned))
        return [*messages, SegmentOpened(segment_id=segment_id, event_id=event_id)]

    def append_character(self, segment_id: str, pcm: Pcm) -> list[ServerMessage]:
        """Queue samples [n] of a segment; its first audio opens it, and audio of a finished one is dropped by id.

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
            raise ProtocolError("segment_ended", f"segment {segment_id} has already ended; use a new id")
        segment.queue.append(pcm)
        return messages

    def end_segment(self, segment_id: str) -> None:
        """Mark a segment as complete; unknown and finished ids are ignored, as they race with events."""
        for segment in self._segments:
            if segment.segment_id == segment_id:
                segment.ended = True

    def note_played(self, played_samples: int) -> None:
        """Record how far the client has played on the media clock; finishes and positions follow it."""
        self._played = min(max(played_samples, self._played or 0), self.position)

    def interrupt(self, played_samples: int | None = None) -> list[ServerMessage]:
        """Silence the character.

        All queued character audio is dropped: every segment finishes now, as interrupted. The next chunk is silent and
        closes the mouth (`next_chunk`), whatever is appended meanwhile. Chunks that the model is computing belong to an
        older `epoch`, by which the service mutes them. Without an unfinished segment nothing happens.

        Args:
            played_samples: how far the client has played on the media clock; the playhead is assumed if absent.

        Returns:
            One `playback.finished` per segment and the change of state.
        """
        if not self.busy:
            return []
        self.epoch += 1
        playhead = self._playhead if played_samples is None else min(played_samples, self.position)
        messages = self._finish_all(playhead)
        if self.state is not CharacterState.DRAINING:
            self._silence_next_chunk = True
            messages += self._enter(CharacterState.INTERRUPTING)
        return messages

    def drain(self) -> list[ServerMessage]:
        """Accept no new segment; accepted audio is still spoken, and streamed segments end with what they have."""
        for segment in self._segments:
            segment.ended = segment.ended or not segment.owned
        return self._enter(CharacterState.DRAINING)

    def close(self) -> list[ServerMessage]:
        """End the session: every unfinished segment gets its `playback.finished`."""
        self.epoch += 1
        return self._finish_all(self._playhead)

    def next_chunk(self) -> tuple[ChunkInput, list[ServerMessage]]:
        """Advance the clock by one chunk; return the model's input and the events that precede its frames."""
        messages: list[ServerMessage] = [
            self._finish(s, interrupted=False, playhead=self._playhead)
            for s in list(self._played_out)
            if s.end_pts <= self._playhead
        ]
        silenced, self._silence_next_chunk = self._silence_next_chunk, False
        speak = np.zeros(self.chunk_samples + self.lookahead_samples, np.int16)
        spoken_id: str | None = None
        if not silenced:
            spoken_id, started = self._fill_speech(speak)
            messages += started
        listen, _ = self._user.take()
        self._measure_silence(listen[: self.chunk_samples])
        messages += self._enter(self._next_state(spoken_id, silenced=silenced))
        dropped, self._dropped_before = self.user_dropped - self._dropped_before, self.user_dropped
        chunk = ChunkInput(
            pts=self.position,
            speak=speak,
            listen=listen,
            state=self.state,
            segment_id=spoken_id,
            user_position=self._user.position,
            user_dropped=dropped,
            epoch=self.epoch,
        )
        self.position += self.chunk_samples
        return chunk, messages

    @property
    def _playhead(self) -> int:
        """Position of playback: one chunk behind the model's output, or as far behind as the client reports."""
        paced = max(0, self.position - (1 + self.pipeline_chunks) * self.chunk_samples)
        return paced if self._played is None else min(paced, max(self._played, paced - ACK_TRUST))

    def _everything(self) -> Sequence[Segment]:
        return [*self._played_out, *self._segments]

    def _finish_all(self, playhead: int) -> list[ServerMessage]:
        return [self._finish(segment, interrupted=True, playhead=playhead) for segment in self._everything()]

    def _fill_speech(self, window: Pcm) -> tuple[str | None, list[ServerMessage]]:
        """Fill the window [chunk + lookahead] from queued segments; only samples of the chunk are consumed."""
        at, spoken_id = 0, None
        messages: list[ServerMessage] = []
        for segment in list(self._segments):
            whole = False
            if segment.ready(window.size - at):
                audio = segment.queue.peek(window.size - at)
                whole = audio.size == len(segment.queue)
                window[at : at + audio.size] = audio
                inside = min(audio.size, max(0, self.chunk_samples - at))
                if inside:
                    messages += self._consume(segment, inside, self.position + at)
                    spoken_id = spoken_id or segment.segment_id
                at += audio.size
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
            # A predecessor that ended inside this chunk finishes first: clients expect that order.
            for old in list(self._played_out):
                messages.append(self._finish(old, interrupted=False, playhead=old.end_pts))
            messages.append(PlaybackStarted(segment_id=segment.segment_id, pts_samples=pts))
        return messages

    def _finish(self, segment: Segment, *, interrupted: bool, playhead: int) -> PlaybackFinished:
        """End a segment; the only place that does, so that each ends exactly once."""
        (self._segments if segment in self._segments else self._played_out).remove(segment)
        self._finished[segment.segment_id] = None
        while len(self._finished) > 4096:
            del self._finished[next(iter(self._finished))]
        unplayed = max(0, segment.end_pts - playhead)
        position = max(0, segment.consumed - unplayed) if interrupted else segment.consumed
        return PlaybackFinished(segment_id=segment.segment_id, position_samples=position, interrupted=interrupted)

    def _measure_silence(self, pcm: Pcm) -> None:
        self._silent_for = 0 if rms(pcm) > self._config.silence_rms else self._silent_for + self.chunk_samples

    def _next_state(self, spoken_id: str | None, *, silenced: bool) -> CharacterState:
        if self.state is CharacterState.DRAINING:
            return CharacterState.DRAINING
        if spoken_id is not None:
            return CharacterState.SPEAKING
        if silenced:
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
