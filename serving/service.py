"""Live conversations over an engine: admission, the pump that paces chunks, speech synthesis, detach and resume, drain.

The event loop only moves bytes: the engine and the video encoder run on one worker thread, speech synthesis on another,
so that the model has exactly one owner. Viewers are reached through `transports.api.Transport`.
"""

import asyncio
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lpm_model.config import AUDIO_RATE
from serving.config import ServingConfig
from serving.drift import DriftMeter
from serving.duplex import ChunkInput
from serving.engine import Engine, EngineSession
from serving.media.audio import Pcm
from serving.media.fragments import ChunkEncoder
from serving.metrics import Metrics
from serving.pacing import Pace
from serving.protocol import (
    ClientMessage,
    Error,
    GoingAway,
    Interrupt,
    Limits,
    MediaChunk,
    MediaInit,
    ProtocolError,
    Replaced,
    ServerMessage,
    SessionClose,
    SessionOpen,
    SessionQueued,
    SessionReady,
    SessionResume,
    TextSpeak,
)
from serving.session import Phase, Session
from serving.transports.api import MediaEncoder, Transport

logger = logging.getLogger(__name__)

T = TypeVar("T")
Voice = Callable[[str, str], Pcm]
"""Text and voice name to int16 speech at 24 kHz."""


class LiveSession:
    """A conversation with its engine state, and the transport that shows it while a viewer is attached."""

    def __init__(self, core: Session, engine_session: EngineSession, opened_at: float) -> None:
        self.core, self.engine_session, self.opened_at = core, engine_session, opened_at
        self.transport: Transport | None = None
        self.attached = asyncio.Event()
        self.pump: asyncio.Task[None] | None = None
        self.voice: asyncio.Task[None] | None = None
        self.advanced = asyncio.Event()
        """Set after every chunk and at the end."""
        self.in_flight: deque[ChunkInput] = deque()
        """Inputs whose frames the model has not returned yet: more than one only where it is pipelined."""
        self.drift_meter = DriftMeter()

    @property
    def over(self) -> bool:
        """Whether the conversation has ended."""
        return self.core.over

    async def next_chunk(self) -> None:
        """Wait until the conversation has advanced by a chunk, or has ended."""
        self.advanced.clear()
        await self.advanced.wait()

    async def speech_finished(self) -> None:
        """Wait until every segment has had its `playback.finished`, or no viewer is attached any more."""
        while self.core.busy and self.transport is not None and not self.over:
            await self.next_chunk()

    def send(self, messages: list[ServerMessage]) -> None:
        """Send numbered messages to the viewer, if one is attached; the session's journal keeps them for a resume."""
        if self.transport is not None:
            self.transport.send(messages)

    def emit(self, messages: list[ServerMessage]) -> None:
        """Number messages and send them."""
        self.send(self.core.stamp(messages))


class CharacterService:
    """The state that all connections of a server share."""

    def __init__(
        self, engine: Engine, config: ServingConfig, metrics: Metrics, *, voice: Voice, voices: tuple[str, ...]
    ) -> None:
        self.engine, self.config, self.metrics, self.voices = engine, config, metrics, voices
        self.draining = False
        self._voice = voice
        self._started = False
        self._sessions: dict[str, LiveSession] = {}
        self._reserved = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._queue: deque[tuple[asyncio.Future[None], Transport]] = deque()
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="lpm-engine")
        self._voice_thread = ThreadPoolExecutor(1, thread_name_prefix="lpm-voice")
        self._reaper: asyncio.Task[None] | None = None
        metrics.session_slots.set(config.max_sessions)

    @property
    def ready(self) -> bool:
        """Whether new conversations are accepted."""
        return self._started and not self.draining

    @property
    def sessions(self) -> tuple[LiveSession, ...]:
        """The conversations that hold a slot."""
        return tuple(self._sessions.values())

    async def start(self) -> None:
        """Warm up the engine and the voice, so that the first viewer does not wait for them."""
        loop = asyncio.get_running_loop()
        voice = loop.run_in_executor(self._voice_thread, self._voice, "Hello.", self.voices[0])
        await asyncio.gather(self.compute(self._warm_up), voice)
        self._reaper = asyncio.create_task(self._reap())
        self._started = True

    async def stop(self) -> None:
        """End every conversation and the threads."""
        for live in self.sessions:
            self._end(live, "server_stopped")
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=self.config.stall_timeout_s)
        if self._reaper is not None:
            self._reaper.cancel()
        self._engine_thread.shutdown(wait=True, cancel_futures=True)
        self._voice_thread.shutdown(wait=False, cancel_futures=True)

    async def compute(self, work: Callable[..., T], *arguments: object) -> T:
        """Run a function on the thread that owns the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._engine_thread, work, *arguments)

    async def open(self, message: SessionOpen, transport: Transport) -> LiveSession:
        """Admit a viewer, who may have to queue first, and start the conversation.

        Raises:
            ProtocolError: `draining`, `resource_exhausted`, `unsupported_protocol` or `character_refused`.
        """
        opened_at = time.perf_counter()
        if message.protocol != 1:
            raise ProtocolError("unsupported_protocol", f"protocol {message.protocol} is not supported; use 1")
        try:
            card = self.engine.card(message.character_id or next(iter(self.engine.characters()), ""))
        except ValueError as error:
            raise ProtocolError("character_refused", str(error)) from error
        await self._admit(transport)
        try:
            seed = secrets.randbelow(1 << 31)
            engine_session = await self.compute(self.engine.open, card.character_id, seed)
            core = Session(
                f"s-{secrets.token_hex(8)}",
                self.config,
                chunk_samples=self.engine.chunk_samples,
                lookahead_samples=self.engine.lookahead_samples,
                pipeline_chunks=self.engine.pipeline_chunks,
            )
            core.enter(Phase.READY)
            live = LiveSession(core, engine_session, opened_at)
            self._sessions[core.session_id] = live
        except BaseException:
            self._reserved -= 1
            self._release()
            raise
        self._reserved -= 1
        transport.send(core.stamp([self._ready_message(core, card.character_id, card.name)]))
        self._attach(live, transport)
        live.pump = asyncio.create_task(self._pump(live))
        self._update_gauges()
        return live

    def resume(self, message: SessionResume, transport: Transport) -> LiveSession:
        """Attach a transport to a conversation that lost, or still has, another one.

        Raises:
            ProtocolError: `resume_failed`; the client opens a new session.
        """
        live = self._sessions.get(message.session_id)
        if live is None or live.over or not live.core.check_resume(message.resume_token):
            raise ProtocolError("resume_failed", "no such session, or it has expired; open a new one")
        replay = live.core.resume(message.last_seq)
        if replay is None:
            raise ProtocolError("resync_required", "the missed events are no longer available; open a new session")
        if live.transport is not None:
            live.transport.send([Replaced()])
            live.transport.close()
        transport.send(replay)
        self._attach(live, transport)
        return live

    async def handle(self, live: LiveSession, message: ClientMessage, payload: bytes) -> None:
        """Apply one client message to a conversation and send the replies.

        Raises:
            ProtocolError: the message is valid but cannot be accepted now.
        """
        live.send(live.core.handle(message, payload))
        if isinstance(message, TextSpeak):
            self._start_speaking(live)
        elif isinstance(message, Interrupt):
            self.metrics.interruptions.inc()
        elif isinstance(message, SessionClose):
            await self.close(live, "client")

    def detach(self, live: LiveSession, transport: Transport) -> None:
        """Detach a lost transport; the conversation waits for a resume."""
        if live.transport is not transport or live.over:
            return
        live.transport = None
        live.attached.clear()
        live.advanced.set()
        live.core.detach(time.monotonic())
        if self._queue:  # a viewer in the queue takes precedence over one who may come back
            self._end(live, "evicted")

    async def close(self, live: LiveSession, reason: str) -> None:
        """End a conversation and free its slot."""
        await asyncio.shield(self._end(live, reason))

    def _end(self, live: LiveSession, reason: str) -> asyncio.Task[None]:
        """Start to end a conversation without waiting, as its own tasks must."""
        task = asyncio.create_task(self._close(live, reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close(self, live: LiveSession, reason: str) -> None:
        if self._sessions.pop(live.core.session_id, None) is None:
            return
        if not live.over:
            live.send(live.core.close(reason))
        if live.transport is not None:
            live.transport.close()
        live.attached.set()
        live.advanced.set()
        self.metrics.sessions_ended.labels(reason).inc()
        working = {task for task in (live.pump, live.voice) if task is not None}
        if working:
            await asyncio.wait(working, timeout=self.config.stall_timeout_s)
        await self.compute(live.engine_session.close)
        self._release()

    def _start_speaking(self, live: LiveSession) -> None:
        """Start the task that synthesises queued text, unless it is running."""
        if live.core.text_jobs and (live.voice is None or live.voice.done()):
            live.voice = asyncio.create_task(self._speak(live))

    async def drain(self, reason: str) -> None:
        """Announce the end, let running segments finish within `drain_s`, then close everything."""
        self.draining = True
        for live in self.sessions:
            notice = GoingAway(deadline_ms=round(self.config.drain_s * 1000), reason=reason)
            live.emit([notice, *live.core.drain()])
        finishing = [asyncio.create_task(live.speech_finished()) for live in self.sessions]
        if finishing:
            await asyncio.wait(finishing, timeout=self.config.drain_s)
        for live in self.sessions:
            self._end(live, reason)
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=self.config.stall_timeout_s)

    def _warm_up(self) -> None:
        session = self.engine.open(next(iter(self.engine.characters())), 0)
        encoder = ChunkEncoder(self.engine.size_px)
        silence = np.zeros(self.engine.chunk_samples + self.engine.lookahead_samples, np.int16)
        voice, pts = silence[: self.engine.chunk_samples], 0
        for _ in range(2 + self.engine.pipeline_chunks):
            frames = session.step(silence, silence, "")
            if len(frames):
                encoder.encode(pts, frames, voice)
                pts += voice.size
        encoder.close()
        session.close()

    def _ready_message(self, core: Session, character_id: str, name: str) -> SessionReady:
        config = self.config
        return SessionReady(
            session_id=core.session_id,
            resume_token=core.new_resume_token(),
            character_id=character_id,
            character_name=name,
            characters=self.engine.characters(),
            voices=list(self.voices),
            fps=self.engine.fps,
            size_px=self.engine.size_px,
            sample_rate=self.engine.sample_rate,
            chunk_samples=self.engine.chunk_samples,
            limits=Limits(
                user_buffer_samples=config.user_buffer_samples,
                character_buffer_samples=config.character_buffer_samples,
                max_message_bytes=config.max_message_bytes,
                max_text_chars=config.max_text_chars,
                grace_ms=round(config.grace_s * 1000),
            ),
            model_uri=self.engine.model_uri,
            model_digest=self.engine.model_digest,
            disclosure=config.disclosure,
        )

    async def _admit(self, transport: Transport) -> None:
        """Reserve a slot: a free one, a detached session's, or one that falls free while queueing."""
        if self.draining:
            raise ProtocolError("draining", "the server is shutting down; connect again in a moment", retryable=True)
        if len(self._sessions) + self._reserved >= self.config.max_sessions:
            detached = [live for live in self.sessions if live.core.phase is Phase.DETACHED]
            if detached and not self._queue:
                self._reserved += 1
                await self.close(detached[0], "evicted")
                return
            if len(self._queue) >= self.config.queue_limit:
                text = (
                    f"all {self.config.max_sessions} slots are taken, {len(self._queue)} viewers queue; try again later"
                )
                raise ProtocolError("resource_exhausted", text, retryable=True)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((turn, transport))
            self._send_queue_positions()
            try:
                await turn  # _release reserves the slot before it resolves this
            except asyncio.CancelledError:
                self._queue = deque(entry for entry in self._queue if entry[0] is not turn)
                if turn.done() and not turn.cancelled():
                    self._reserved -= 1
                self._release()
                raise
            return
        self._reserved += 1

    def _release(self) -> None:
        while self._queue and len(self._sessions) + self._reserved < self.config.max_sessions:
            turn, _ = self._queue.popleft()
            if not turn.done():
                self._reserved += 1
                turn.set_result(None)
        self._send_queue_positions()
        self._update_gauges()

    def _send_queue_positions(self) -> None:
        for place, (_, transport) in enumerate(self._queue, start=1):
            transport.send([SessionQueued(position=place)])

    def _update_gauges(self) -> None:
        self.metrics.sessions_active.set(len(self._sessions))
        self.metrics.sessions_queued.set(len(self._queue))

    def _attach(self, live: LiveSession, transport: Transport) -> None:
        live.transport = transport
        live.attached.set()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for live in self.sessions:
                if live.core.expire(time.monotonic()):
                    await self.close(live, "expired")

    async def _pump(self, live: LiveSession) -> None:
        """Generate for whichever transport is attached, until the conversation has ended."""
        try:
            while not live.over:
                await live.attached.wait()
                if live.transport is not None and not live.over:
                    await self._stream(live, live.transport)
        except Exception:
            logger.exception("session %s failed", live.core.session_id)
            live.emit([Error(code="engine_failed", message="the model failed; open a new session")])
            self._end(live, "engine_failed")

    async def _stream(self, live: LiveSession, transport: Transport) -> None:
        """Serve one transport: an initialisation segment, then a chunk whenever the playhead needs one."""
        position = live.in_flight[0].pts if live.in_flight else live.core.position
        encoder = await self.compute(transport.make_encoder, self.engine.size_px, position)
        init = MediaInit(
            mime=encoder.mime,
            width=self.engine.size_px,
            height=self.engine.size_px,
            fps=self.engine.fps,
            timescale=AUDIO_RATE,
            pts_samples=position,
        )
        transport.send_media(live.core.stamp([init])[0], encoder.init_segment)
        pace = Pace(self.engine.chunk_samples / AUDIO_RATE)
        last: float | None = None
        while await transport.media_ready() and live.transport is transport and not live.over:
            now = time.perf_counter()
            if pace.release > now:
                await asyncio.sleep(pace.release - now)
                continue
            if not await self._one_chunk(live, transport, encoder):
                continue
            now = time.perf_counter()
            self.metrics.deadline_misses.inc(pace.delivered(now))
            if last is None and position == 0:
                self.metrics.first_frame.observe(now - live.opened_at)
            elif last is not None:
                self.metrics.frame_gap.observe(now - last)
            last = now
        await self.compute(encoder.close)
        if live.transport is transport and not live.over:
            self.detach(live, transport)

    async def _one_chunk(self, live: LiveSession, transport: Transport, encoder: MediaEncoder) -> bool:
        """Feed the next chunk to the model and send the chunk that it returns; False while its pipeline fills."""
        core, size = live.core, self.engine.chunk_samples
        chunk, events = core.next_chunk()
        self.metrics.user_dropped.inc(chunk.user_dropped)
        transport.send(events)
        started = time.perf_counter()
        live.in_flight.append(chunk)
        frames = await self.compute(live.engine_session.step, chunk.speak, chunk.listen, core.prompt)
        if not len(frames):
            live.advanced.set()
            return False
        chunk = live.in_flight.popleft()
        self.metrics.observe_drift(await self.compute(live.drift_meter.add, frames))
        muted = core.is_stale(chunk)  # interrupted while the model was computing it
        voice = np.zeros(size, np.int16) if muted else chunk.speak[:size]
        payload = await self.compute(encoder.encode, chunk.pts, frames, voice)
        seconds = time.perf_counter() - started
        self.metrics.chunks.inc()
        self.metrics.compute.observe(seconds * AUDIO_RATE / size)
        live.advanced.set()
        if live.over:
            return True
        message = MediaChunk(
            pts_samples=chunk.pts,
            duration_samples=size,
            state=core.state if muted else chunk.state,
            segment_id=None if muted else chunk.segment_id,
            user_samples=chunk.user_position,
            user_buffered_samples=core.user_buffered,
            compute_ms=round(seconds * 1000, 2),
        )
        transport.send_media(core.stamp([message])[0], payload)
        return True

    async def _speak(self, live: LiveSession) -> None:
        """Turn queued text into segments, sentence by sentence, as fast as the credits allow."""
        core = live.core
        loop = asyncio.get_running_loop()
        while core.text_jobs and not core.over:
            job = core.text_jobs.popleft()
            for sentence in split_sentences(job.text):
                if not core.is_live(job.segment_id):
                    break
                try:
                    voice = job.voice or self.voices[0]
                    pcm = await loop.run_in_executor(self._voice_thread, self._voice, sentence, voice)
                except Exception as error:
                    logger.warning("session %s: speech synthesis failed", core.session_id, exc_info=error)
                    live.emit([Error(code="speech_failed", message=str(error)[:300])])
                    break
                await self._feed(live, job.segment_id, pcm)
            core.end_text(job.segment_id)

    async def _feed(self, live: LiveSession, segment_id: str, pcm: Pcm) -> None:
        core = live.core
        for start in range(0, pcm.size, AUDIO_RATE):
            block = pcm[start : start + AUDIO_RATE]
            while core.credits < block.size and core.is_live(segment_id):
                await live.next_chunk()
            if core.is_live(segment_id):
                live.send(core.feed_text(segment_id, block))


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, so that the first can play while the next is synthesised."""
    return [part.strip() for part in re.split(r"(?<=[.!?;:])\s+|\n+", text) if part.strip()]
