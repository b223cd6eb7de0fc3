"""Refined speech edges against known edges."""

import dataclasses

import numpy as np

from components.curate.config import StateConfig
from components.curate.labels.edges import bridge_pauses, mouth_evidence, refine_edges
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
    """Evidence of a mouth with a voice from start to stop: it opens earlier and closes later."""
    gap = 0.02 + 0.12 * (1.2 + np.sin(np.arange(FRAMES))) * spoken(start - LEAD, stop + LAG)
    return mouth_evidence(gap.astype(np.float32), motion_evidence(gap.astype(np.float32), CONFIG, 3))


def voice(start: int, stop: int) -> np.ndarray:
    """Log odds of a voice detector that releases one frame late."""
    return np.where(spoken(start, stop + 1), 3.9, -3.9)


def test_refine_edges_corrects_late_and_early_edges() -> None:
    for first, last in ((33, 107), (46, 95)):
        (found,) = refine_edges([spoken(first, last)], [lips(40, 100)], voice(40, 100), NOBODY, CONFIG)
        ((start, stop),) = runs(found)
        assert abs(start - 40) <= 1
        assert abs(stop - 100) <= 1


def test_refine_edges_uses_each_mouth_in_an_overlap() -> None:
    decoded, mouths = [spoken(20, 93), spoken(93, 150)], [lips(20, 100), lips(88, 150)]
    one, other = refine_edges(decoded, mouths, voice(20, 150), NOBODY, CONFIG)
    assert abs(runs(one)[0][1] - 100) <= 2
    assert abs(runs(other)[0][0] - 88) <= 2


def test_offscreen_voice_does_not_extend_speech() -> None:
    (found,) = refine_edges([spoken(20, 80)], [lips(20, 80)], voice(20, 150), spoken(80, 150), CONFIG)
    assert abs(runs(found)[0][1] - 80) <= 2


def test_refine_edges_without_reach_or_face() -> None:
    still = dataclasses.replace(CONFIG, edge_reach_s=0.0)
    blind = mouth_evidence(np.full(FRAMES, np.nan, np.float32), np.zeros(FRAMES, np.float32))
    assert not blind.any()
    (kept,) = refine_edges([spoken(33, 107)], [lips(40, 100)], voice(40, 100), NOBODY, still)
    np.testing.assert_array_equal(kept, spoken(33, 107))
    (by_voice,) = refine_edges([spoken(36, 104)], [blind], voice(40, 100), NOBODY, CONFIG)
    assert runs(by_voice) == [(40, 100)]
    assert refine_edges([], [], voice(40, 100), NOBODY, CONFIG) == []


def test_bridge_pauses_fills_short_pauses_only() -> None:
    speaks = spoken(10, 20) | spoken(26, 40) | spoken(60, 70)
    assert runs(bridge_pauses(speaks, 6)) == [(10, 40), (60, 70)]
