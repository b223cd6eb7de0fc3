"""Conversations over a real loopback WebSocket."""

import asyncio
import itertools
import json
import time

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serving.client import RefusedError, connect, converse
from serving.config import ServingConfig
from serving.engine import FakeEngine
from serving.protocol import (
    STREAM_PATH,
    Closed,
    Error,
    Flow,
    GoingAway,
    PlaybackFinished,
    PlaybackStarted,
    Replaced,
    Resumed,
    State,
)


async def fetch(url: str, *paths: str) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        return [await http.get(path) for path in paths]


async def test_conversation_with_both_voices(start, voice) -> None:
    async with start() as running:
        seen = await converse(running.url, running.token, user=voice(36_000), character=voice(24_000), seconds=2.0)
        page, metrics, health = await fetch(running.url, "/", "/metrics", "/healthz")
    assert seen.ready.disclosure
    assert seen.frames.shape[1:] == (64, 64, 3)
    assert [c.message.pts_samples for c in seen.chunks] == [4000 * n for n in range(len(seen.chunks))]
    assert list(itertools.chain(*(c.pts for c in seen.chunks))) == [1000 * n for n in range(4 * len(seen.chunks))]
    finished = [event for event in seen.events if isinstance(event, PlaybackFinished)]
    assert finished[0].position_samples == 24_000
    assert not finished[0].interrupted
    assert {"listening", "speaking"} <= {event.state for event in seen.events if isinstance(event, State)}
    assert np.abs(np.concatenate([c.voice for c in seen.chunks]).astype(int)).max() > 2000
    assert page.status_code == health.status_code == 200
    assert "frame-ancestors" in page.headers["content-security-policy"]
    assert "lpm_first_frame_seconds_count 1.0" in metrics.text
    assert 'lpm_character_sessions_ended_total{reason="client"} 1.0' in metrics.text


async def test_pipelined_frames_are_sent_with_their_own_audio(start, voice) -> None:
    """Two chunks are in the pipeline, and each frame is still sent with the audio that produced it."""
    async with (
        start(engine=FakeEngine(64, pipeline_chunks=2)) as running,
        connect(running.url, running.token, keep_frames=True) as client,
    ):
        for number in range(3):
            await client.append_character(f"s{number}", voice(14_000))
            await client.end_segment(f"s{number}")
            await client.wait(lambda done=number + 1: len(client.of(PlaybackFinished)) == done, timeout_s=30)
            await asyncio.sleep(0.5)  # a pause between the segments
        chunks = list(client.chunks)
    assert [c.message.pts_samples for c in chunks] == [4000 * n for n in range(len(chunks))]
    frames = np.concatenate([c.frames for c in chunks]).astype(float)
    audio = np.zeros(1000 * len(frames))
    for chunk in chunks:
        part = chunk.voice[: max(0, audio.size - chunk.voice_pts)]
        audio[chunk.voice_pts : chunk.voice_pts + part.size] = part
    loud = np.abs(audio).reshape(-1, 1000).mean(1)
    mouth = -frames[:, 41:46, 29:36].mean((1, 2, 3))
    assert np.corrcoef(loud, mouth)[0, 1] > 0.8


async def test_generation_is_at_most_one_chunk_ahead_of_the_playhead(start) -> None:
    async with start() as running, connect(running.url, running.token, keep_frames=False) as client:
        await client.wait(lambda: len(client.chunks) >= 14)
        arrivals = [chunk.received_s for chunk in client.chunks]
    chunk_s = 4 / 24
    for number, arrival in enumerate(arrivals):
        assert arrival - arrivals[0] >= (number - 1) * chunk_s - 0.05  # at most one chunk ahead


async def test_texts_are_spoken_in_order_and_failures_are_reported(start) -> None:
    async with start() as running, connect(running.url, running.token) as client:
        await client.speak("Hi. You.", segment_id="one")
        await client.speak("Me.", segment_id="two", voice="test")
        await client.wait(lambda: len(client.of(PlaybackFinished)) == 2)
        lengths = {event.segment_id: event.position_samples for event in client.of(PlaybackFinished)}
        await client.speak("No such voice.", segment_id="three", voice="nobody")
        failed = await client.wait_event(Error)
        await client.wait(lambda: len(client.of(PlaybackFinished)) == 3)
    assert lengths == {"one": 2400 * 7, "two": 2400 * 3}
    assert failed.code == "speech_failed"
    assert [event.segment_id for event in client.of(PlaybackStarted)] == ["one", "two"]


async def test_interrupt_silences_the_next_chunk(start, voice) -> None:
    async with start() as running, connect(running.url, running.token) as client:
        await client.append_character("a", voice(10 * 24_000))
        await client.wait_event(PlaybackStarted)
        await client.wait(lambda: len(client.chunks) >= 6)
        await client.interrupt()
        finished = await client.wait_event(PlaybackFinished)
        at_interrupt = len(client.chunks)
        await client.wait(lambda: len(client.chunks) >= at_interrupt + 6)
        after = client.chunks[at_interrupt:]
    assert finished.interrupted
    assert 0 < finished.position_samples <= client.chunks[at_interrupt - 1].message.pts_samples + 4000
    # Chunks in flight at the interruption are muted too: no later chunk speaks.
    assert all(chunk.message.state != "speaking" and chunk.message.segment_id is None for chunk in after)
    assert np.abs(after[-1].voice.astype(int)).max() < 300


async def test_starved_segment_falls_back_to_listening_with_moving_frames(start, voice) -> None:
    async with start() as running, connect(running.url, running.token) as client:
        await client.append_character("a", voice(8000))
        await client.wait(lambda: any(e.state == "listening" for e in client.of(State)))
        before = len(client.chunks)
        await client.wait(lambda: len(client.chunks) >= before + 3)
        frames = np.concatenate([chunk.frames for chunk in client.chunks[before:]]).astype(int)
        assert client.of(PlaybackFinished) == []
        await client.append_character("a", voice(8000))
        await client.end_segment("a")
        assert (await client.wait_event(PlaybackFinished)).position_samples == 16_000
    assert np.abs(np.diff(frames, axis=0)).sum() > 0


async def test_user_audio_beyond_two_seconds_drops_the_oldest(start, voice) -> None:
    async with start() as running, connect(running.url, running.token) as client:
        await client.wait(lambda: bool(client.chunks))
        for _ in range(5):
            await client.append_user(voice(24_000))
        await client.wait(lambda: any(flow.user_dropped_samples >= 40_000 for flow in client.of(Flow)))
        await client.wait(lambda: client.chunks[-1].message.user_samples > 40_000)
        assert client.chunks[-1].message.user_buffered_samples <= 48_000


async def test_credits_are_consumed_and_restored(start, voice) -> None:
    config = ServingConfig(character_buffer_s=2.0)
    async with start(config=config) as running, connect(running.url, running.token) as client:
        await client.append_character("a", voice(40_000))
        await client.append_character("a", voice(40_000))
        refused = await client.wait_event(Error)
        assert (refused.code, refused.retryable) == ("input_backpressure", True)
        await client.wait(lambda: client.of(Flow)[-1].credits > 40_000)
        await client.append_character("a", voice(40_000))
        await client.end_segment("a")
        assert (await client.wait_event(PlaybackFinished)).position_samples == 80_000


async def test_lost_connection_resumes_at_its_position(start, voice) -> None:
    async with start() as running:
        async with connect(running.url, running.token) as first:
            await first.append_character("a", voice(6 * 24_000))
            await first.end_segment("a")
            await first.wait_event(PlaybackStarted)
            await first.wait(lambda: len(first.chunks) >= 4)
        left_at = first.chunks[-1].message.pts_samples
        await asyncio.sleep(0.5)
        async with connect(running.url, running.token, resume=first) as second:
            await second.wait(lambda: len(second.chunks) >= 3)
            begin = second.chunks[0]
            await second.interrupt()
            await second.wait_event(PlaybackFinished)
        assert second.of(Resumed)[0].session_id == first.ready.session_id
        assert 0 < begin.message.pts_samples - left_at <= 3 * 4000  # the media clock stood still meanwhile
        assert begin.message.state == "speaking"
        assert begin.pts[0] == begin.message.pts_samples
        with pytest.raises(RefusedError, match="resume_failed"):
            async with connect(running.url, running.token, resume=first):
                pass


async def test_resume_replaces_an_attached_connection(start) -> None:
    async with start() as running, connect(running.url, running.token) as first:
        await first.wait(lambda: bool(first.chunks))
        async with connect(running.url, running.token, resume=first) as second:
            await second.wait(lambda: bool(second.chunks))
            assert await first.wait_event(Replaced)


async def test_detached_session_expires_after_its_grace_time(start) -> None:
    async with start(config=ServingConfig(grace_s=0.2)) as running:
        async with connect(running.url, running.token) as gone:
            await gone.wait(lambda: bool(gone.chunks))
        await asyncio.sleep(1.5)
        with pytest.raises(RefusedError, match="resume_failed"):
            async with connect(running.url, running.token, resume=gone):
                pass


@pytest.mark.parametrize("token", ["", "wrong", "a-token-for-test"])
async def test_wrong_token_is_refused(start, token: str) -> None:
    async with start() as running:
        with pytest.raises(RefusedError, match="unauthorized"):
            async with connect(running.url, token):
                pass


async def test_only_own_and_listed_origins_are_accepted(start) -> None:
    async with start(config=ServingConfig(allowed_origins=("https://app.example",))) as running:
        with pytest.raises(InvalidStatus, match="403"):
            async with connect(running.url, running.token, origin="https://evil.example"):
                pass
        for origin in ("https://app.example", running.url):
            async with connect(running.url, running.token, origin=origin) as client:
                await client.wait(lambda client=client: bool(client.chunks))
                await client.close()


async def test_oversized_message_ends_the_connection(start) -> None:
    async with (
        start(config=ServingConfig(max_message_bytes=20_000)) as running,
        connect(running.url, running.token) as client,
    ):
        await client.wait(lambda: bool(client.chunks))
        await client.append_user(np.zeros(20_000, np.int16))
        with pytest.raises(ConnectionError):
            await client.wait(lambda: False)
        assert any("1009" in error.message for error in client.of(Error))


async def test_malformed_messages_are_reported_and_too_many_end_the_session(start) -> None:
    async with (
        start(config=ServingConfig(max_bad_messages=3)) as running,
        connect(running.url, running.token) as client,
    ):
        await client.socket.send('{"type": "session.explode", "event_id": "e1"}')
        error = await client.wait_event(Error)
        assert (error.code, error.event_id) == ("unknown_message", "e1")
        await client.ping()
        await client.socket.send(b"\x00")
        await client.socket.send("not json")
        assert (await client.wait_event(Closed)).reason == "protocol_violation"


async def test_first_message_must_open_a_session_in_time(start) -> None:
    async with start(config=ServingConfig(start_timeout_s=0.2)) as running:
        address = running.url.replace("http", "ws") + STREAM_PATH
        async with connect_socket(address) as silent:
            assert json.loads(await silent.recv())["code"] == "start_timeout"
            assert json.loads(await silent.recv())["type"] == "closed"
            with pytest.raises(ConnectionClosed):
                await silent.recv()
        async with connect_socket(address) as wrong:
            await wrong.send('{"type": "ping"}')
            assert json.loads(await wrong.recv())["code"] == "unexpected_message"


async def test_viewers_queue_and_detached_sessions_are_evicted(start) -> None:
    async with start(config=ServingConfig(max_sessions=1, queue_limit=1)) as running:
        async with connect(running.url, running.token) as first:
            await first.wait(lambda: bool(first.chunks))
            address = running.url.replace("http", "ws") + STREAM_PATH
            async with connect_socket(address) as waiting:
                await waiting.send(json.dumps({"type": "session.open", "token": running.token}))
                queued = json.loads(await waiting.recv())
                assert (queued["type"], queued["position"]) == ("session.queued", 1)
                with pytest.raises(RefusedError, match="resource_exhausted"):
                    async with connect(running.url, running.token):
                        pass
                await first.socket.close()  # detached, and somebody waits
                assert json.loads(await waiting.recv())["type"] == "session.ready"
        with pytest.raises(RefusedError, match="resume_failed"):
            async with connect(running.url, running.token, resume=first):
                pass


async def test_failing_model_ends_only_its_session(start) -> None:
    class Fragile(FakeEngine):
        def open(self, character_id, seed):
            session, steps = super().open(character_id, seed), itertools.count()
            step = session.step

            def failing(speak, listen, text):
                if text == "break" and next(steps) >= 0:
                    raise RuntimeError("no such kernel")
                return step(speak, listen, text)

            session.step = failing
            return session

    async with start(engine=Fragile(48)) as running:
        async with connect(running.url, running.token) as client:
            await client.prompt("break")
            assert (await client.wait_event(Error)).code == "engine_failed"
            await client.wait_event(Closed)
        async with connect(running.url, running.token) as client:
            await client.wait(lambda: len(client.chunks) >= 3)


async def test_drain_notifies_viewers_and_lets_speech_finish(start, voice) -> None:
    async with start(config=ServingConfig(drain_s=20.0)) as running, connect(running.url, running.token) as client:
        await client.append_character("a", voice(24_000))
        await client.end_segment("a")
        await client.wait_event(PlaybackStarted)
        began = time.monotonic()
        draining = asyncio.create_task(running.service.drain("server_shutdown"))
        assert (await client.wait_event(GoingAway)).deadline_ms == 20_000
        assert (await fetch(running.url, "/healthz"))[0].status_code == 503
        finished = await client.wait_event(PlaybackFinished)
        assert (finished.position_samples, finished.interrupted) == (24_000, False)
        assert (await client.wait_event(Closed)).reason == "server_shutdown"
        await draining
        assert time.monotonic() - began < 15.0


async def test_viewer_that_reads_nothing_is_detached(start) -> None:
    config = ServingConfig(stall_timeout_s=0.5, max_sessions=1)
    async with start(config=config, engine=FakeEngine(256)) as running:
        address = running.url.replace("http", "ws") + STREAM_PATH
        async with connect_socket(address, max_queue=1) as lazy:
            lazy.transport.pause_reading()
            await lazy.send(json.dumps({"type": "session.open", "token": running.token}))
            await asyncio.sleep(0.3)
            (live,) = running.service.sessions
            async with asyncio.timeout(40):
                while live.transport is not None and len(live.transport) < 8:
                    # A real network buffers megabytes: fill them with control messages instead of waiting for video.
                    live.emit([Error(code="x" * 200_000, message="filler")])
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(20):
                while live.transport is not None:
                    await live.next_chunk()  # also set by the detachment
            lazy.transport.abort()
        assert live.core.over or live.core.phase == "detached"
