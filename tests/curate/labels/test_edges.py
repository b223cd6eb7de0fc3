"""Edges of speech against edges that are known."""

import dataclasses

import numpy as np

from components.curate.config import StateConfig
from components.curate.labels.edges import bridge, mouth_evidence, place_edges
from components.curate.labels.intervals import runs
from components.curate.labels.states import motion_evidence

CONFIG = StateConfig()
FRAMES = 160
LEAD, LAG = round(CONFIG.lips_lead_s * 24), round(CONFIG.lips_lag_s * 24)
NOBODY = np.zeros(FRAMES, bool)


def spoken(start: int, stop: int) -> np.ndarray:
    at = np.arange(FRAMES)
    return (at >= start) & (at < stop)


def lips(start: int, stop: int) -> np.ndarray:
    """Evidence of a mouth whose voice is heard from start to stop: it opens before and closes after."""
    gap = 0.02 + 0.12 * (1.2 + np.sin(np.arange(FRAMES))) * spoken(start - LEAD, stop + LAG)
    return mouth_evidence(gap.astype(np.float32), motion_evidence(gap.astype(np.float32), CONFIG, 3))


def voice(start: int, stop: int) -> np.ndarray:
    """Log odds of a detector that lets go a frame late."""
    return np.where(spoken(start, stop + 1), 3.9, -3.9)


def test_late_and_early_edges_are_put_right() -> None:
    for first, last in ((33, 107), (46, 95)):
        (found,) = place_edges([spoken(first, last)], [lips(40, 100)], voice(40, 100), NOBODY, CONFIG)
        ((start, stop),) = runs(found)
        assert abs(start - 40) <= 1
        assert abs(stop - 100) <= 1


def test_in_an_overlap_each_mouth_tells_its_own_end() -> None:
    decoded, mouths = [spoken(20, 93), spoken(93, 150)], [lips(20, 100), lips(88, 150)]
    one, other = place_edges(decoded, mouths, voice(20, 150), NOBODY, CONFIG)
    assert abs(runs(one)[0][1] - 100) <= 2
    assert abs(runs(other)[0][0] - 88) <= 2


def test_the_voice_of_somebody_unseen_does_not_lengthen_speech() -> None:
    (found,) = place_edges([spoken(20, 80)], [lips(20, 80)], voice(20, 150), spoken(80, 150), CONFIG)
    assert abs(runs(found)[0][1] - 80) <= 2


def test_without_reach_and_without_a_face_nothing_is_invented() -> None:
    still = dataclasses.replace(CONFIG, edge_reach_s=0.0)
    blind = mouth_evidence(np.full(FRAMES, np.nan, np.float32), np.zeros(FRAMES, np.float32))
    assert not blind.any()
    (kept,) = place_edges([spoken(33, 107)], [lips(40, 100)], voice(40, 100), NOBODY, still)
    np.testing.assert_array_equal(kept, spoken(33, 107))
    (heard,) = place_edges([spoken(36, 104)], [blind], voice(40, 100), NOBODY, CONFIG)
    assert runs(heard) == [(40, 100)]
    assert place_edges([], [], voice(40, 100), NOBODY, CONFIG) == []


def test_only_short_pauses_are_bridged() -> None:
    speaks = spoken(10, 20) | spoken(26, 40) | spoken(60, 70)
    assert runs(bridge(speaks, 6)) == [(10, 40), (60, 70)]
