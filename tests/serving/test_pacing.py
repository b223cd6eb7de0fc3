import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.pacing import Pace

CHUNK_S = 4 / 24


def test_first_two_chunks_are_released_at_once_then_one_per_chunk_time() -> None:
    pace = Pace(CHUNK_S)
    assert pace.release == 0.0
    pace.delivered(100.0)
    assert pace.release == 100.0
    pace.delivered(100.01)
    assert pace.release == pytest.approx(100.0 + CHUNK_S)


@given(st.lists(st.floats(0.0, 1.5), min_size=1, max_size=200))
def test_generation_is_never_more_than_one_chunk_ahead_of_the_playhead(costs: list[float]) -> None:
    pace, now = Pace(CHUNK_S), 10.0
    playing_from = None
    for made, cost in enumerate(costs):
        now = max(now, pace.release)
        if playing_from is not None:
            playhead = (now - playing_from) / CHUNK_S
            assert made - 1 <= playhead + 1e-6  # chunk `made - 1` at most has started to play
        now += cost * CHUNK_S
        pace.delivered(now)
        playing_from = now if playing_from is None else playing_from


def test_late_chunk_is_reported_and_caught_up() -> None:
    pace = Pace(CHUNK_S)
    pace.delivered(0.0)
    assert not pace.delivered(CHUNK_S * 0.9)
    assert pace.delivered(CHUNK_S * 2.5)
    assert pace.release == pytest.approx(2 * CHUNK_S)


def test_schedule_restarts_after_a_stall() -> None:
    pace = Pace(CHUNK_S)
    pace.delivered(0.0)
    assert pace.delivered(30 * CHUNK_S)
    assert pace.release == pytest.approx(30 * CHUNK_S)


def test_chunk_length_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pace(0.0)
