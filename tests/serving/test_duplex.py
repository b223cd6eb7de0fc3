from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import ServingConfig
from serving.duplex import TRANSITIONS, Duplex
from serving.media.audio import SampleQueue, UserBuffer
from serving.protocol import CharacterState, PlaybackFinished, PlaybackStarted, ProtocolError, ServerMessage, State

CHUNK, LOOKAHEAD = 400, 100


def make(**limits: float) -> Duplex:
    return Duplex(ServingConfig(**limits), chunk_samples=CHUNK, lookahead_samples=LOOKAHEAD)


def tone(count: int, value: int = 5000) -> np.ndarray:
    return np.full(count, value, np.int16)


def of(messages: list[ServerMessage], kind: type) -> list:
    return [message for message in messages if isinstance(message, kind)]


def run(duplex: Duplex, chunks: int) -> tuple[list, list[ServerMessage]]:
    inputs, messages = [], []
    for _ in range(chunks):
        chunk, events = duplex.next_chunk()
        inputs.append(chunk)
        messages += events
    return inputs, messages


def test_segment_is_spoken_in_order_and_finishes_once() -> None:
    duplex = make()
    voice = np.arange(1, 1001, dtype=np.int16)
    duplex.append_character("a", voice)
    duplex.end_segment("a")
    inputs, messages = run(duplex, 5)
    spoken = np.concatenate([chunk.speak[:CHUNK] for chunk in inputs])
    assert np.array_equal(spoken[:1000], voice)
    assert not spoken[1000:].any()
    assert [m.pts_samples for m in of(messages, PlaybackStarted)] == [0]
    assert of(messages, PlaybackFinished) == [
        PlaybackFinished(segment_id="a", position_samples=1000, interrupted=False)
    ]


def test_lookahead_is_the_start_of_the_next_chunk() -> None:
    duplex = make()
    duplex.append_character("a", np.arange(1, 2001, dtype=np.int16))
    duplex.end_segment("a")
    inputs, _ = run(duplex, 4)
    for now, following in zip(inputs, inputs[1:], strict=False):
        assert np.array_equal(now.speak[CHUNK:], following.speak[:LOOKAHEAD])


def test_consecutive_segments_have_no_gap() -> None:
    duplex = make()
    for name, value in (("a", 100), ("b", 200)):
        duplex.append_character(name, tone(500, value))
        duplex.end_segment(name)
    inputs, messages = run(duplex, 5)
    spoken = np.concatenate([chunk.speak[:CHUNK] for chunk in inputs])
    assert np.array_equal(spoken[:1000], np.repeat([100, 200], 500))
    order = [(type(m).__name__, m.segment_id) for m in messages if isinstance(m, PlaybackStarted | PlaybackFinished)]
    assert order == [
        ("PlaybackStarted", "a"),
        ("PlaybackFinished", "a"),
        ("PlaybackStarted", "b"),
        ("PlaybackFinished", "b"),
    ]


def test_interrupt_silences_the_next_chunk() -> None:
    duplex = make()
    duplex.append_character("a", tone(5000))
    run(duplex, 3)
    messages = duplex.interrupt()
    (finished,) = of(messages, PlaybackFinished)
    assert finished.interrupted
    assert 0 < finished.position_samples <= 3 * CHUNK
    inputs, _ = run(duplex, 2)
    assert not inputs[0].speak.any()
    assert [chunk.state for chunk in inputs] == [CharacterState.INTERRUPTING, CharacterState.IDLE]


def test_audio_of_a_finished_segment_is_dropped() -> None:
    duplex = make()
    duplex.append_character("a", tone(5000))
    run(duplex, 1)
    duplex.interrupt()
    assert duplex.append_character("a", tone(5000)) == []
    inputs, _ = run(duplex, 3)
    assert not np.concatenate([chunk.speak for chunk in inputs]).any()


def test_interrupt_uses_the_played_position_of_the_client() -> None:
    duplex = make()
    duplex.append_character("a", tone(5000))
    run(duplex, 5)
    (finished,) = of(duplex.interrupt(played_samples=700), PlaybackFinished)
    assert finished.position_samples == 700


def test_finish_waits_for_a_lagging_viewer_up_to_a_limit() -> None:
    duplex = make()
    duplex.append_character("a", tone(800))
    duplex.end_segment("a")
    run(duplex, 2)
    duplex.note_played(100)
    assert of(run(duplex, 4)[1], PlaybackFinished) == []
    duplex.note_played(800)
    assert len(of(run(duplex, 1)[1], PlaybackFinished)) == 1
    duplex.append_character("b", tone(800))
    duplex.end_segment("b")
    chunks = 2 * 24_000 // CHUNK
    assert len(of(run(duplex, chunks + 5)[1], PlaybackFinished)) == 1


def test_starved_segment_falls_back_to_listening_and_resumes() -> None:
    duplex = make()
    duplex.append_character("a", tone(CHUNK + LOOKAHEAD))
    inputs, _ = run(duplex, 4)
    assert [chunk.state.value for chunk in inputs] == ["speaking", "speaking", "listening", "listening"]
    duplex.append_character("a", tone(2 * CHUNK))
    assert run(duplex, 1)[0][0].state is CharacterState.SPEAKING


def test_new_streamed_segment_supersedes_a_streamed_one_but_not_text() -> None:
    duplex = make()
    duplex.append_character("a", tone(5000))
    messages = duplex.append_character("b", tone(5000))
    assert [(m.segment_id, m.interrupted) for m in of(messages, PlaybackFinished)] == [("a", True)]
    duplex = make()
    duplex.open_segment("text", owned=True)
    assert of(duplex.append_character("b", tone(500)), PlaybackFinished) == []


def test_user_speech_sets_listening_and_silence_sets_idle() -> None:
    duplex = make(listening_hold_s=0.02)
    duplex.append_user(tone(3 * CHUNK + LOOKAHEAD))
    states = [chunk.state.value for chunk in run(duplex, 8)[0]]
    assert states[0] == "listening"
    assert states[-1] == "idle"


def test_both_roles_advance_on_one_clock() -> None:
    duplex = make()
    duplex.append_user(tone(4 * CHUNK, 11))
    duplex.append_character("a", tone(4 * CHUNK, 22))
    inputs, _ = run(duplex, 3)
    assert [chunk.pts for chunk in inputs] == [0, CHUNK, 2 * CHUNK]
    assert all((chunk.listen == 11).all() and (chunk.speak == 22).all() for chunk in inputs)


def test_credits_bound_the_queued_character_audio() -> None:
    duplex = make(character_buffer_s=0.1)
    duplex.append_character("a", tone(2000))
    assert duplex.credits == 400
    with pytest.raises(ProtocolError, match="400 credits") as caught:
        duplex.append_character("a", tone(401))
    assert caught.value.code == "input_backpressure"
    assert caught.value.retryable
    run(duplex, 1)
    assert duplex.credits == 800


def test_draining_finishes_accepted_speech_and_rejects_new_segments() -> None:
    duplex = make()
    duplex.append_character("a", tone(900))
    duplex.drain()
    with pytest.raises(ProtocolError, match="ending"):
        duplex.append_character("b", tone(10))
    _, messages = run(duplex, 6)
    assert [(m.position_samples, m.interrupted) for m in of(messages, PlaybackFinished)] == [(900, False)]
    assert not duplex.busy


def test_draining_is_final() -> None:
    duplex = make()
    duplex.append_character("a", tone(CHUNK))
    duplex.drain()
    duplex.interrupt()
    assert {chunk.state for chunk in run(duplex, 5)[0]} == {CharacterState.DRAINING}
    assert TRANSITIONS[CharacterState.DRAINING] == frozenset()


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 4), st.integers(1, 1500)),
        st.tuples(st.just("open_text"), st.integers(5, 8), st.just(0)),
        st.tuples(st.just("feed_text"), st.integers(5, 8), st.integers(1, 1500)),
        st.tuples(st.just("end"), st.integers(0, 8), st.just(0)),
        st.tuples(st.just("interrupt"), st.just(0), st.integers(0, 9000)),
        st.tuples(st.just("user"), st.just(0), st.integers(1, 3000)),
        st.tuples(st.just("chunk"), st.just(0), st.just(0)),
        st.tuples(st.just("drain"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def apply(duplex: Duplex, action: str, number: int, amount: int) -> list[ServerMessage]:
    name = f"s{number}"
    match action:
        case "append":
            return duplex.append_character(name, tone(amount))
        case "open_text":
            return duplex.open_segment(name, owned=True)
        case "feed_text":
            return duplex.append_character(name, tone(amount)) if duplex.is_live(name) else []
        case "end":
            duplex.end_segment(name)
        case "interrupt":
            return duplex.interrupt(amount or None)
        case "user":
            duplex.append_user(tone(amount))
        case "chunk":
            return duplex.next_chunk()[1]
        case "drain" if duplex.state is not CharacterState.DRAINING:
            return duplex.drain()
    return []


@settings(max_examples=300, deadline=None)
@given(actions)
def test_every_segment_finishes_exactly_once(events: list[tuple[str, int, int]]) -> None:
    duplex = make(character_buffer_s=0.3, max_segments=3)
    messages: list[ServerMessage] = []
    refusals: set[str] = set()
    for event in events:
        try:
            messages += apply(duplex, *event)
        except ProtocolError as refused:
            refusals.add(refused.code)
    assert refusals <= {"input_backpressure", "segment_exists", "segment_ended", "resource_exhausted", "draining"}
    messages += duplex.close()
    opened = Counter(m.segment_id for m in messages if m.type == "segment.opened")
    finished = Counter(m.segment_id for m in of(messages, PlaybackFinished))
    assert opened == finished
    assert set(opened.values()) <= {1}
    assert not duplex.busy
    started = [m.segment_id for m in of(messages, PlaybackStarted)]
    assert len(started) == len(set(started))
    for change in of(messages, State):
        assert change.state in TRANSITIONS[change.previous]
    assert all(m.position_samples >= 0 for m in of(messages, PlaybackFinished))


@given(st.lists(st.integers(1, 700), max_size=12), st.integers(0, 900))
def test_sample_queue_preserves_samples(sizes: list[int], dropped: int) -> None:
    queue, total = SampleQueue(), np.arange(sum(sizes), dtype=np.int16)
    at = 0
    for size in sizes:
        queue.append(total[at : at + size])
        at += size
    assert queue.drop(dropped) == min(dropped, total.size)
    assert np.array_equal(queue.peek(10_000), total[dropped:])


def test_user_buffer_drops_the_oldest_beyond_its_capacity() -> None:
    buffer = UserBuffer(capacity=48_000, chunk=4000, lookahead=0, surplus=4000)
    assert buffer.append(tone(40_000, 1)) == 0
    assert buffer.append(tone(20_000, 2)) == 12_000
    assert len(buffer) == 48_000
    assert buffer.position == buffer.dropped == 12_000
    window, _ = buffer.take()
    assert (window == 1).all()


def test_user_buffer_drops_a_surplus_that_is_never_needed() -> None:
    buffer = UserBuffer(capacity=48_000, chunk=4000, lookahead=0, surplus=4000)
    buffer.append(tone(30_000))
    for _ in range(UserBuffer.WINDOW_CHUNKS + 1):
        buffer.append(tone(4000))
        buffer.take()
    assert len(buffer) <= 2000


def test_user_buffer_refills_after_an_underrun() -> None:
    buffer = UserBuffer(capacity=48_000, chunk=4000, lookahead=1000, surplus=4000)
    buffer.append(tone(4500))
    assert not buffer.take()[0].any()
    buffer.append(tone(600))
    window, real = buffer.take()
    assert real
    assert window.all()
