"""Live conversations over an engine: admission, the pump that paces chunks, speech synthesis, detach and resume, drain.

The event loop only moves bytes: the engine, its video encoder and the voice run in worker threads, one thread each, so
that the model has exactly one owner.
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
from serving.outbox import Outbox
from serving.pacing import Pace
from serving.protocol import (
    Error,
    GoingAway,
    Limits,
    MediaChunk,
    MediaInit,
    ProtocolError,
    Replaced,
    ServerMessage,
    SessionOpen,
    SessionQueued,
    SessionReady,
    SessionResume,
)
from serving.session import Phase, Session

logger = logging.getLogger(__name__)

T = TypeVar("T")
Voice = Callable[[str, str], Pcm]
"""Text and voice name to int16 speech at 24 kHz."""


class LiveSession:
    """A conversation with its engine state, and the connection that shows it, if there is one."""

    def __init__(self, core: Session, engine_session: EngineSession, opened_at: float) -> None:
        self.core, self.engine_session, self.opened_at = core, engine_session, opened_at
        self.outbox: Outbox | None = None
        self.attached = asyncio.Event()
        self.pump: asyncio.Task[None] | None = None
        self.voice: asyncio.Task[None] | None = None
        self.moved = asyncio.Event()
        """Set after every chunk and at the end."""
        self.under_way: deque[ChunkInput] = deque()
        """What the model has heard and not shown yet: more than one chunk only where it is pipelined."""
        self.meter = DriftMeter()

    async def next_chunk(self) -> None:
        """Wait until the conversation has moved by a chunk, or is over."""
        self.moved.clear()
        await self.moved.wait()

    async def quiet(self) -> None:
        """Wait until every segment has had its finish, or nobody watches any more."""
        while self.core.duplex.busy and self.outbox is not None and not self.core.over:
            await self.next_chunk()

    def post(self, messages: list[ServerMessage]) -> None:
        """Send to the viewer, if one is attached; the session's journal keeps control events for the others."""
        if self.outbox is not None:
            self.outbox.post(messages)


class CharacterService:
    """Everything a server shares between its connections."""

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
        self._queue: deque[tuple[asyncio.Future[None], Outbox]] = deque()
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="lpm-engine")
        self._voice_thread = ThreadPoolExecutor(1, thread_name_prefix="lpm-voice")
        self._reaper: asyncio.Task[None] | None = None
        metrics.session_slots.set(config.max_sessions)

    @property
    def ready(self) -> bool:
        """Whether new conversations are welcome."""
        return self._started and not self.draining

    async def start(self) -> None:
        """Warm the engine and the voice, so that the first visitor does not pay for them."""
        loop = asyncio.get_running_loop()
        voice = loop.run_in_executor(self._voice_thread, self._voice, "Hello.", self.voices[0])
        await asyncio.gather(self.compute(self._warm_up), voice)
        self._reaper = asyncio.create_task(self._reap())
        self._started = True

    async def stop(self) -> None:
        """End every conversation and the threads."""
        for live in list(self._sessions.values()):
            self._end(live, "server_stopped")
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=self.config.stall_timeout_s)
        if self._reaper is not None:
            self._reaper.cancel()
        self._engine_thread.shutdown(wait=True, cancel_futures=True)
        self._voice_thread.shutdown(wait=False, cancel_futures=True)

    async def compute(self, work: Callable[..., T], *arguments: object) -> T:
        """Run work on the thread that owns the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._engine_thread, work, *arguments)

    async def open(self, message: SessionOpen, outbox: Outbox) -> LiveSession:
        """Admit a visitor, who may have to queue first, and start the conversation.

        Raises:
            ProtocolError: `draining`, `resource_exhausted`, `unsupported_protocol` or `character_refused`.
        """
        opened_at = time.perf_counter()
        if message.protocol != 1:
            raise ProtocolError("unsupported_protocol", f"protocol {message.protocol} is not spoken here; use 1")
        try:
            card = self.engine.card(message.character_id or next(iter(self.engine.characters()), ""))
        except ValueError as error:
            raise ProtocolError("character_refused", str(error)) from error
        await self._admit(outbox)
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
        outbox.post(core.stamp([self._welcome(core, card.character_id, card.name)]))
        self._attach(live, outbox)
        live.pump = asyncio.create_task(self._pump(live))
        self._count()
        return live

    def resume(self, message: SessionResume, outbox: Outbox) -> LiveSession:
        """Attach a connection to a conversation that lost, or still has, another one.

        Raises:
            ProtocolError: `resume_failed`; the client opens a new session.
        """
        live = self._sessions.get(message.session_id)
        if live is None or live.core.over or not live.core.check_resume(message.resume_token):
            raise ProtocolError("resume_failed", "no such session, or it has expired; open a new one")
        replay = live.core.resume(message.last_seq)
        if replay is None:
            raise ProtocolError("resync_required", "the missed events are no longer kept; open a new session")
        if live.outbox is not None:
            live.outbox.post([Replaced()])
            live.outbox.close()
        outbox.post(replay)
        self._attach(live, outbox)
        return live

    def detach(self, live: LiveSession, outbox: Outbox) -> None:
        """The connection of this outbox is gone; the conversation waits for a resume."""
        if live.outbox is not outbox or live.core.over:
            return
        live.outbox = None
        live.attached.clear()
        live.moved.set()
        live.core.detach(time.monotonic())
        if self._queue:  # a visitor who waits goes before one who may come back
            self._end(live, "evicted")

    async def close(self, live: LiveSession, reason: str) -> None:
        """End a conversation and free its slot."""
        await asyncio.shield(self._end(live, reason))

    def _end(self, live: LiveSession, reason: str) -> asyncio.Task[None]:
        """Begin to end a conversation; for those who must not wait for it, such as its own tasks."""
        task = asyncio.create_task(self._close(live, reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close(self, live: LiveSession, reason: str) -> None:
        if self._sessions.pop(live.core.session_id, None) is None:
            return
        if not live.core.over:
            live.post(live.core.close(reason))
        if live.outbox is not None:
            live.outbox.close()
        live.attached.set()
        live.moved.set()
        self.metrics.sessions_ended.labels(reason).inc()
        working = {task for task in (live.pump, live.voice) if task is not None}
        if working:
            await asyncio.wait(working, timeout=self.config.stall_timeout_s)
        await self.compute(live.engine_session.close)
        self._release()

    def spoken(self, live: LiveSession) -> None:
        """Text may have been queued: see that somebody speaks it."""
        if live.core.text_jobs and (live.voice is None or live.voice.done()):
            live.voice = asyncio.create_task(self._speak(live))

    async def drain(self, reason: str) -> None:
        """Announce the end, let running segments finish within `drain_s`, then close everything."""
        self.draining = True
        for live in list(self._sessions.values()):
            note = GoingAway(deadline_ms=round(self.config.drain_s * 1000), reason=reason)
            live.post(live.core.stamp([note, *live.core.duplex.drain()]))
        finishing = [asyncio.create_task(live.quiet()) for live in self._sessions.values()]
        if finishing:
            await asyncio.wait(finishing, timeout=self.config.drain_s)
        for live in list(self._sessions.values()):
            self._end(live, reason)
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=self.config.stall_timeout_s)

    def _warm_up(self) -> None:
        character = next(iter(self.engine.characters()))
        session = self.engine.open(character, 0)
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

    def _welcome(self, core: Session, character_id: str, name: str) -> SessionReady:
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

    async def _admit(self, outbox: Outbox) -> None:
        """Reserve a slot: a free one, a detached session's, or after a wait in the queue."""
        if self.draining:
            raise ProtocolError("draining", "the server is going away; connect again in a moment", retryable=True)
        if len(self._sessions) + self._reserved >= self.config.max_sessions:
            waiting = [live for live in self._sessions.values() if live.core.phase is Phase.DETACHED]
            if waiting and not self._queue:
                self._reserved += 1
                await self.close(waiting[0], "evicted")
                return
            if len(self._queue) >= self.config.queue_limit:
                text = (
                    f"{self.config.max_sessions} conversations run, {len(self._queue)} visitors wait; come back later"
                )
                raise ProtocolError("resource_exhausted", text, retryable=True)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((turn, outbox))
            self._tell_queue()
            try:
                await turn  # _release reserves the slot for whom it calls
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
        self._tell_queue()
        self._count()

    def _tell_queue(self) -> None:
        for place, (_, outbox) in enumerate(self._queue, start=1):
            outbox.post([SessionQueued(position=place)])

    def _count(self) -> None:
        self.metrics.sessions_active.set(len(self._sessions))
        self.metrics.sessions_queued.set(len(self._queue))

    def _attach(self, live: LiveSession, outbox: Outbox) -> None:
        live.outbox = outbox
        live.attached.set()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for live in list(self._sessions.values()):
                if live.core.expire(time.monotonic()):
                    await self.close(live, "expired")

    async def _pump(self, live: LiveSession) -> None:
        """Generate for whoever is attached, until the conversation is over."""
        try:
            while not live.core.over:
                await live.attached.wait()
                if live.outbox is not None and not live.core.over:
                    await self._show(live, live.outbox)
        except Exception:
            logger.exception("session %s failed", live.core.session_id)
            live.post(live.core.stamp([Error(code="engine_failed", message="the model failed; open a new session")]))
            self._end(live, "engine_failed")

    async def _show(self, live: LiveSession, outbox: Outbox) -> None:
        """One connection's stream: an initialisation segment, then a chunk whenever the playhead asks for it."""
        position = live.under_way[0].pts if live.under_way else live.core.duplex.position
        encoder = await self.compute(lambda: ChunkEncoder(self.engine.size_px, start_pts=position))
        init = MediaInit(
            mime=encoder.mime,
            width=self.engine.size_px,
            height=self.engine.size_px,
            fps=self.engine.fps,
            timescale=AUDIO_RATE,
            pts_samples=position,
        )
        outbox.post_media(live.core.stamp([init])[0], encoder.init_segment)
        pace = Pace(self.engine.chunk_samples / AUDIO_RATE)
        last: float | None = None
        while await outbox.room() and live.outbox is outbox and not live.core.over:
            now = time.perf_counter()
            if pace.release > now:
                await asyncio.sleep(pace.release - now)
                continue
            if not await self._one_chunk(live, outbox, encoder):
                continue
            now = time.perf_counter()
            self.metrics.deadline_misses.inc(pace.delivered(now))
            if last is None and position == 0:
                self.metrics.first_frame.observe(now - live.opened_at)
            elif last is not None:
                self.metrics.frame_gap.observe(now - last)
            last = now
        await self.compute(encoder.close)
        if live.outbox is outbox and not live.core.over:
            self.detach(live, outbox)

    async def _one_chunk(self, live: LiveSession, outbox: Outbox, encoder: ChunkEncoder) -> bool:
        """Let the model hear the next chunk, and send the one that comes out; False while its pipeline fills."""
        core, size = live.core, self.engine.chunk_samples
        dropped = core.duplex.user.dropped
        chunk, events = core.next_chunk()
        self.metrics.user_dropped.inc(core.duplex.user.dropped - dropped)
        outbox.post(events)
        started = time.perf_counter()
        live.under_way.append(chunk)
        frames = await self.compute(live.engine_session.step, chunk.speak, chunk.listen, core.prompt)
        if not len(frames):
            live.moved.set()
            return False
        chunk = live.under_way.popleft()
        self.metrics.drifted(await self.compute(live.meter.add, frames))
        stale = chunk.epoch != core.duplex.epoch  # interrupted while the model ran: its voice must not sound any more
        voice = np.zeros(size, np.int16) if stale else chunk.speak[:size]
        segment = await self.compute(encoder.encode, chunk.pts, frames, voice)
        seconds = time.perf_counter() - started
        self.metrics.chunks.inc()
        self.metrics.compute.observe(seconds * AUDIO_RATE / size)
        live.moved.set()
        if core.over:
            return True
        message = MediaChunk(
            pts_samples=chunk.pts,
            duration_samples=size,
            state=core.duplex.state if stale else chunk.state,
            segment_id=None if stale else chunk.segment_id,
            user_samples=chunk.user_position,
            user_buffered_samples=len(core.duplex.user),
            compute_ms=round(seconds * 1000, 2),
        )
        outbox.post_media(core.stamp([message])[0], segment)
        return True

    async def _speak(self, live: LiveSession) -> None:
        """Turn queued text into segments, sentence by sentence, as fast as the credits allow."""
        core = live.core
        loop = asyncio.get_running_loop()
        while core.text_jobs and not core.over:
            job = core.text_jobs.popleft()
            for sentence in split_sentences(job.text):
                if not core.duplex.is_live(job.segment_id):
                    break
                try:
                    voice = job.voice or self.voices[0]
                    pcm = await loop.run_in_executor(self._voice_thread, self._voice, sentence, voice)
                except Exception as error:
                    logger.warning("session %s: text was not spoken", core.session_id, exc_info=error)
                    live.post(core.stamp([Error(code="speech_failed", message=str(error)[:300])]))
                    break
                await self._feed(live, job.segment_id, pcm)
            core.duplex.end_segment(job.segment_id)

    async def _feed(self, live: LiveSession, segment_id: str, pcm: Pcm) -> None:
        for start in range(0, pcm.size, AUDIO_RATE):
            block = pcm[start : start + AUDIO_RATE]
            while live.core.duplex.credits < block.size and live.core.duplex.is_live(segment_id):
                await live.next_chunk()
            if live.core.duplex.is_live(segment_id):
                live.post(live.core.feed_text(segment_id, block))


def split_sentences(text: str) -> list[str]:
    """Sentences in order, so that the first can sound while the next is synthesised."""
    return [part.strip() for part in re.split(r"(?<=[.!?;:])\s+|\n+", text) if part.strip()]
