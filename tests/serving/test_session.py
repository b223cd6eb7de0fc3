import numpy as np
import pytest

from serving.config import ServingConfig
from serving.protocol import (
    AudioAppend,
    Interrupt,
    Ping,
    PlaybackFinished,
    Pong,
    ProtocolError,
    Resumed,
    SegmentOpened,
    ServerMessage,
    TextPrompt,
    TextSpeak,
    Warn,
)
from serving.session import JOURNAL_EVENTS, PHASES, IllegalPhaseError, Phase, Session

PCM = np.full(2000, 900, "<i2").tobytes()


def make(**limits: float) -> Session:
    session = Session("s-1", ServingConfig(**limits), chunk_samples=4000, lookahead_samples=0)
    session.enter(Phase.READY)
    return session


def test_seq_increases_without_gaps() -> None:
    session = make()
    messages: list[ServerMessage] = session.handle(TextSpeak(text="Hello."), b"")
    for _ in range(3):
        messages += session.next_chunk()[1]
    messages += session.close("client")
    assert [m.seq for m in messages] == list(range(1, len(messages) + 1))


def test_repeated_event_id_is_applied_once() -> None:
    session = make()
    append = AudioAppend(role="character", segment_id="a", event_id="e1")
    session.handle(append, PCM)
    (warning,) = session.handle(append, PCM)
    assert isinstance(warning, Warn)
    assert warning.code == "duplicate_event"
    assert session.duplex.buffered_samples == 2000


def test_retryable_refusals_can_be_retried() -> None:
    session = make(character_buffer_s=0.2)
    session.handle(AudioAppend(role="character", segment_id="a"), PCM + PCM)
    late = AudioAppend(role="character", segment_id="a", event_id="e2")
    with pytest.raises(ProtocolError) as caught:
        session.handle(late, PCM)
    assert caught.value.event_id == "e2"
    session.next_chunk()
    assert not any(isinstance(m, Warn) for m in session.handle(late, PCM))


def test_resume_replays_control_events_and_issues_a_new_token() -> None:
    session = make()
    token = session.new_resume_token()
    opened = session.handle(TextSpeak(text="Hello."), b"")
    session.detach(now=0.0)
    missed = session.stamp(session.interrupt())
    assert session.check_resume(token)
    replay = session.resume(opened[-1].seq)
    assert replay is not None
    assert [type(m) for m in replay[:-1]] == [type(m) for m in missed]
    assert any(isinstance(m, PlaybackFinished) for m in replay)
    assert isinstance(replay[-1], Resumed)
    assert not session.check_resume(token)
    assert session.check_resume(replay[-1].resume_token)


def test_session_expires_after_its_grace_time() -> None:
    session = make(grace_s=30.0)
    session.detach(now=100.0)
    assert not session.expire(now=129.9)
    assert session.expire(now=130.0)
    assert session.phase is Phase.EXPIRED


def test_resume_fails_if_the_journal_has_a_gap() -> None:
    session = make()
    for number in range(JOURNAL_EVENTS + 10):
        session.stamp([SegmentOpened(segment_id=f"x{number}")])
    assert session.resume(3) is None
    assert session.resume(10**9) is None


def test_illegal_phase_changes_raise() -> None:
    session = make()
    session.close("client")
    assert session.over
    assert PHASES[Phase.CLOSED] == frozenset()
    with pytest.raises(IllegalPhaseError):
        session.enter(Phase.READY)


def test_prompt_takes_effect_at_its_sample() -> None:
    session = make()
    session.handle(TextPrompt(prompt="smile", at_samples=6000), b"")
    prompts = []
    for _ in range(4):
        session.next_chunk()
        prompts.append(session.prompt)
    assert prompts == ["", "", "smile", "smile"]


def test_text_is_bounded_and_interrupt_drops_queued_text() -> None:
    session = make(max_text_chars=5)
    with pytest.raises(ProtocolError, match="at most 5"):
        session.handle(TextSpeak(text="Too long."), b"")
    session.handle(TextSpeak(text="Hi."), b"")
    finished = [m for m in session.handle(Interrupt(), b"") if isinstance(m, PlaybackFinished)]
    assert [m.interrupted for m in finished] == [True]
    assert not session.text_jobs


def test_ping_returns_pong() -> None:
    (pong,) = make().handle(Ping(t=77), b"")
    assert isinstance(pong, Pong)
    assert pong.t == 77
