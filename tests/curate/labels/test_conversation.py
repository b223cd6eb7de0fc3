"""Offsets, intervals and identities by properties."""

import numpy as np
import pytest

from components.curate.config import IntervalConfig, StateConfig
from components.curate.labels.intervals import find_intervals, runs
from components.curate.labels.offset import UNKNOWN, find_offset, shift_sound, sound_bands
from components.curate.labels.states import gate, label_people
from components.curate.video.identity import Person, group, hinted, name_people
from components.dataset.states import LISTEN, SPEAK

CONFIG = IntervalConfig()


def speech(*spans: tuple[int, int], frames: int = 240) -> np.ndarray:
    out = np.zeros(frames, bool)
    for start, stop in spans:
        out[start:stop] = True
    return out


def kinds(own: np.ndarray, other: np.ndarray) -> list[tuple[int, int, str, str]]:
    return [(one.start, one.stop, one.kind, one.who) for one in find_intervals(own, other, CONFIG)]


def test_turns_take_pauses_in() -> None:
    assert kinds(speech((0, 40), (60, 100)), speech((110, 200))) == [
        (0, 100, "turn", "own"),
        (110, 200, "turn", "other"),
    ]


def test_a_short_answer_takes_no_turn() -> None:
    assert kinds(speech((0, 90), (100, 200)), speech((88, 104))) == [
        (0, 200, "turn", "own"), (88, 90, "overlap", "both"), (88, 104, "backchannel", "other"),
        (100, 104, "overlap", "both"),
    ]  # fmt: skip


def test_who_comes_in_and_outlasts_interrupts() -> None:
    found = kinds(speech((0, 100)), speech((85, 200)))
    assert (85, 100, "interruption", "other") in found
    assert (85, 100, "overlap", "both") in found
    assert not any(kind == "interruption" for _, _, kind, _ in kinds(speech((0, 100)), speech((97, 200))))


@pytest.mark.parametrize("seed", range(5))
def test_intervals_partition_the_speech_and_know_no_sides(seed: int) -> None:
    chance = np.random.default_rng(seed)
    own, other = (np.repeat(chance.random(40) < 0.5, chance.integers(4, 12, 40))[:240] for _ in range(2))
    size = min(len(own), len(other))
    own, other = own[:size], other[:size]
    found = find_intervals(own, other, CONFIG)
    covered = {who: np.zeros(size, int) for who in ("own", "other", "both")}
    for one in found:
        if one.kind != "interruption":
            covered[one.who][one.start : one.stop] += 1
    for who, mask in (("own", own), ("other", other)):
        assert covered[who].max() <= 1  # turns and backchannels of one person never meet
        assert (covered[who][mask] == 1).all()
    assert (covered["both"][own & other] == 1).all()
    names = {"own": "other", "other": "own", "both": "both"}
    swapped = {(one.start, one.stop, one.kind, names[one.who]) for one in find_intervals(other, own, CONFIG)}
    assert swapped == {(one.start, one.stop, one.kind, one.who) for one in found}


def test_runs_of_a_mask() -> None:
    assert runs(speech((3, 5), (9, 10), frames=10)) == [(3, 5), (9, 10)]


@pytest.fixture(scope="module")
def talk() -> tuple[np.ndarray, np.ndarray]:
    """A mouth and a voice whose loudness follows it, with a pause, over noise."""
    chance = np.random.default_rng(4)
    opening = np.convolve(chance.random(480), np.hanning(7), mode="same") / 3
    opening *= np.where((np.arange(480) % 120) < 90, 1.0, 0.0)
    wave = chance.normal(size=480_000) * np.interp(np.arange(480_000) / 1000, np.arange(480), opening)
    return (0.1 * opening).astype(np.float32), (8000 * wave + 20 * chance.normal(size=480_000)).astype(np.int16)


@pytest.mark.parametrize("frames", [-12, -1, 0, 5, 12])
def test_the_offset_moves_with_the_sound(talk: tuple[np.ndarray, np.ndarray], frames: int) -> None:
    gap, sound = talk
    late = shift_sound(sound, -frames)
    found = find_offset([(0, gap)], sound_bands(late))
    assert found.frames == frames
    assert found.confidence > 0.2
    np.testing.assert_array_equal(shift_sound(late, frames)[24_000:-24_000], sound[24_000:-24_000])


def test_a_still_mouth_or_silence_tells_no_offset(talk: tuple[np.ndarray, np.ndarray]) -> None:
    gap, sound = talk
    assert find_offset([(0, np.full(480, 0.02, np.float32))], sound_bands(sound)) == UNKNOWN
    assert find_offset([(0, gap)], sound_bands(np.zeros_like(sound))) == UNKNOWN


def test_labels_do_not_hang_on_the_order_and_move_with_the_source() -> None:
    chance = np.random.default_rng(0)
    at = np.arange(200)
    gaps = [
        (0.02 + 0.1 * np.abs(np.sin(at * 1.1)) * ((at >= a) & (at < b)) + 0.001 * chance.random(200)).astype(np.float32)
        for a, b in ((20, 70), (80, 130), (140, 180))
    ]
    heard = np.where(np.any([gap > 0.03 for gap in gaps], axis=0), 0.97, 0.03).astype(np.float32)
    ahead = label_people(heard, gaps, StateConfig())
    turned = label_people(heard, gaps[::-1], StateConfig())
    for one, other in zip(ahead, turned[::-1], strict=True):
        np.testing.assert_array_equal(one.states, other.states)
    rolled = label_people(np.roll(heard, 7), [np.roll(gap, 7) for gap in gaps], StateConfig())
    for one, other in zip(ahead, rolled, strict=True):
        assert (np.roll(one.states, 7)[20:] == other.states[20:]).mean() > 0.99


def test_gated_tracks_sum_to_the_source_where_one_speaks() -> None:
    chance = np.random.default_rng(1)
    states = np.array([SPEAK] * 12 + [LISTEN] * 12 + [SPEAK] * 12, np.uint8)
    sound = chance.integers(-9000, 9000, 36_000).astype(np.int16)
    both = gate(sound, states, LISTEN, 1000).astype(int) + gate(sound, states, SPEAK, 1000)
    assert np.abs(both - sound).max() <= 1  # the ramps cross over


def test_people_are_grouped_by_distance_but_never_beside_themselves() -> None:
    chance = np.random.default_rng(2)
    faces = np.repeat(chance.normal(size=(4, 128)) / 16, 3, axis=0) + chance.normal(size=(12, 128)) / 400
    assert group(faces.astype(np.float32), [], 0.28) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    parted = group(faces.astype(np.float32), [(0, 1)], 0.28)
    assert parted[0] != parted[1]
    faces[5] = np.nan
    lone = group(faces.astype(np.float32), [], 0.28)
    assert lone.count(lone[5]) == 1
    assert group(np.zeros((0, 128), np.float32), [], 0.28) == []


def test_an_identity_bears_the_owners_name_and_people_in_one_picture_stay_two() -> None:
    face = np.full(128, 0.1, np.float32)

    def person(source: str, track: int, hint: str | None, span: tuple[int, int]) -> Person:
        return Person(key=(source, track), name=f"{source}.p{track}", hint=hint, span=span, embedding=face)

    cuts = [person("x", 0, None, (0, 50)), person("x", 1, None, (50, 90)), person("y", 0, "Ann", (0, 50))]
    assert set(name_people(cuts, 0.28).values()) == {"Ann"}
    assert name_people(cuts[::-1], 0.28) == name_people(cuts, 0.28)
    beside = [person("x", 0, None, (0, 50)), person("x", 1, None, (20, 90))]
    assert len(set(name_people(beside, 0.28).values())) == 2
    assert name_people([], 0.28) == {}


def test_the_owners_name_holds_for_a_source_with_cuts_but_not_for_one_with_two_people(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone = {("x", 0): "x.p0", ("x", 1): "x.p0", ("y", 0): "x.p0", ("z", 0): "z.p0"}
    assert hinted(alone, {"x": "Ann", "y": None, "z": None}) == {**dict.fromkeys(alone, "Ann"), ("z", 0): "z.p0"}
    assert not caplog.records
    two = {("x", 0): "x.p0", ("x", 1): "x.p1"}
    assert hinted(two, {"x": "Ann"}) == two
    assert "names nobody" in caplog.text
    assert hinted({("x", 0): "Bob"}, {"x": "Ann", "w": "Bob"}) == {("x", 0): "Bob"}
