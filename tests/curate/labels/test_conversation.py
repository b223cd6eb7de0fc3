"""Properties of offsets, intervals, labels and identities."""

import numpy as np
import pytest

from components.curate.config import IntervalConfig, StateConfig
from components.curate.labels.intervals import find_intervals, runs
from components.curate.labels.offset import UNKNOWN, find_av_offset, mel_bands, shift_audio
from components.curate.labels.states import gate_audio, label_people
from components.curate.video.identity import Person, apply_hints, cluster_people, name_people
from components.dataset.states import LISTEN, SPEAK

CONFIG = IntervalConfig()


def speech(*spans: tuple[int, int], frames: int = 240) -> np.ndarray:
    out = np.zeros(frames, bool)
    for start, stop in spans:
        out[start:stop] = True
    return out


def kinds(own: np.ndarray, other: np.ndarray) -> list[tuple[int, int, str, str]]:
    return [(one.start, one.stop, one.kind, one.who) for one in find_intervals(own, other, CONFIG)]


def test_turn_includes_pauses() -> None:
    assert kinds(speech((0, 40), (60, 100)), speech((110, 200))) == [
        (0, 100, "turn", "own"),
        (110, 200, "turn", "other"),
    ]


def test_short_answer_is_a_backchannel() -> None:
    assert kinds(speech((0, 90), (100, 200)), speech((88, 104))) == [
        (0, 200, "turn", "own"), (88, 90, "overlap", "both"), (88, 104, "backchannel", "other"),
        (100, 104, "overlap", "both"),
    ]  # fmt: skip


def test_interruption_outlasts_the_first_speaker() -> None:
    found = kinds(speech((0, 100)), speech((85, 200)))
    assert (85, 100, "interruption", "other") in found
    assert (85, 100, "overlap", "both") in found
    assert not any(kind == "interruption" for _, _, kind, _ in kinds(speech((0, 100)), speech((97, 200))))


@pytest.mark.parametrize("seed", range(5))
def test_intervals_partition_speech_and_are_symmetric(seed: int) -> None:
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
        assert covered[who].max() <= 1  # turns and backchannels of one person never overlap
        assert (covered[who][mask] == 1).all()
    assert (covered["both"][own & other] == 1).all()
    names = {"own": "other", "other": "own", "both": "both"}
    swapped = {(one.start, one.stop, one.kind, names[one.who]) for one in find_intervals(other, own, CONFIG)}
    assert swapped == {(one.start, one.stop, one.kind, one.who) for one in found}


def test_runs_of_a_mask() -> None:
    assert runs(speech((3, 5), (9, 10), frames=10)) == [(3, 5), (9, 10)]


@pytest.fixture(scope="module")
def talk() -> tuple[np.ndarray, np.ndarray]:
    """A mouth gap, and a voice with pauses over noise whose loudness follows it."""
    chance = np.random.default_rng(4)
    opening = np.convolve(chance.random(480), np.hanning(7), mode="same") / 3
    opening *= np.where((np.arange(480) % 120) < 90, 1.0, 0.0)
    wave = chance.normal(size=480_000) * np.interp(np.arange(480_000) / 1000, np.arange(480), opening)
    return (0.1 * opening).astype(np.float32), (8000 * wave + 20 * chance.normal(size=480_000)).astype(np.int16)


@pytest.mark.parametrize("frames", [-12, -1, 0, 5, 12])
def test_find_av_offset_follows_shifted_audio(talk: tuple[np.ndarray, np.ndarray], frames: int) -> None:
    gap, audio = talk
    late = shift_audio(audio, -frames)
    found = find_av_offset([(0, gap)], mel_bands(late))
    assert found.frames == frames
    assert found.confidence > 0.2
    np.testing.assert_array_equal(shift_audio(late, frames)[24_000:-24_000], audio[24_000:-24_000])


def test_find_av_offset_is_unknown_for_still_mouth_or_silence(talk: tuple[np.ndarray, np.ndarray]) -> None:
    gap, audio = talk
    assert find_av_offset([(0, np.full(480, 0.02, np.float32))], mel_bands(audio)) == UNKNOWN
    assert find_av_offset([(0, gap)], mel_bands(np.zeros_like(audio))) == UNKNOWN


def test_labels_are_equivariant_to_person_order_and_time_shift() -> None:
    chance = np.random.default_rng(0)
    at = np.arange(200)
    gaps = [
        (0.02 + 0.1 * np.abs(np.sin(at * 1.1)) * ((at >= a) & (at < b)) + 0.001 * chance.random(200)).astype(np.float32)
        for a, b in ((20, 70), (80, 130), (140, 180))
    ]
    probability = np.where(np.any([gap > 0.03 for gap in gaps], axis=0), 0.97, 0.03).astype(np.float32)
    ahead = label_people(probability, gaps, StateConfig())
    turned = label_people(probability, gaps[::-1], StateConfig())
    for one, other in zip(ahead, turned[::-1], strict=True):
        np.testing.assert_array_equal(one.states, other.states)
    rolled = label_people(np.roll(probability, 7), [np.roll(gap, 7) for gap in gaps], StateConfig())
    for one, other in zip(ahead, rolled, strict=True):
        assert (np.roll(one.states, 7)[20:] == other.states[20:]).mean() > 0.99


def test_gated_tracks_sum_to_the_source() -> None:
    chance = np.random.default_rng(1)
    states = np.array([SPEAK] * 12 + [LISTEN] * 12 + [SPEAK] * 12, np.uint8)
    audio = chance.integers(-9000, 9000, 36_000).astype(np.int16)
    both = gate_audio(audio, states, LISTEN, 1000).astype(int) + gate_audio(audio, states, SPEAK, 1000)
    assert np.abs(both - audio).max() <= 1  # the ramps are complementary


def test_cluster_people_respects_distance_and_cannot_link() -> None:
    chance = np.random.default_rng(2)
    faces = np.repeat(chance.normal(size=(4, 128)) / 16, 3, axis=0) + chance.normal(size=(12, 128)) / 400
    assert cluster_people(faces.astype(np.float32), [], 0.28) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    parted = cluster_people(faces.astype(np.float32), [(0, 1)], 0.28)
    assert parted[0] != parted[1]
    faces[5] = np.nan
    lone = cluster_people(faces.astype(np.float32), [], 0.28)
    assert lone.count(lone[5]) == 1
    assert cluster_people(np.zeros((0, 128), np.float32), [], 0.28) == []


def test_name_people_uses_the_hint_and_separates_co_visible_people() -> None:
    face = np.full(128, 0.1, np.float32)

    def person(source: str, track: int, hint: str | None, span: tuple[int, int]) -> Person:
        return Person(key=(source, track), name=f"{source}.p{track}", hint=hint, span=span, embedding=face)

    cuts = [person("x", 0, None, (0, 50)), person("x", 1, None, (50, 90)), person("y", 0, "Ann", (0, 50))]
    assert set(name_people(cuts, 0.28).values()) == {"Ann"}
    assert name_people(cuts[::-1], 0.28) == name_people(cuts, 0.28)
    co_visible = [person("x", 0, None, (0, 50)), person("x", 1, None, (20, 90))]
    assert len(set(name_people(co_visible, 0.28).values())) == 2
    assert name_people([], 0.28) == {}


def test_apply_hints_covers_cuts_but_not_two_people(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone = {("x", 0): "x.p0", ("x", 1): "x.p0", ("y", 0): "x.p0", ("z", 0): "z.p0"}
    assert apply_hints(alone, {"x": "Ann", "y": None, "z": None}) == {**dict.fromkeys(alone, "Ann"), ("z", 0): "z.p0"}
    assert not caplog.records
    two = {("x", 0): "x.p0", ("x", 1): "x.p1"}
    assert apply_hints(two, {"x": "Ann"}) == two
    assert "may show several people" in caplog.text
    assert apply_hints({("x", 0): "Bob"}, {"x": "Ann", "w": "Bob"}) == {("x", 0): "Bob"}
