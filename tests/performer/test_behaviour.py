"""Behaviour: the mouth follows the voice of the person, reactions follow the partner's."""

import numpy as np
import pytest

from components.performer.behaviour import EMOTIONS, LISTEN, SPEAK, animate
from components.performer.phones import Phone
from components.performer.tracks import ARKIT_INDEX
from components.performer.visemes import mouth_curves
from components.performer.voice_cues import measure_cues
from components.performer.voices import speak

FRAMES = 24 * 14
JAW = ARKIT_INDEX["jawOpen"]


def on_timeline(*placed: tuple[float, str], voice: str = "hibari") -> tuple[np.ndarray, tuple[Phone, ...]]:
    pcm = np.zeros(FRAMES * 1000, np.int16)
    phones: list[Phone] = []
    for second, text in placed:
        speech = speak(text, voice)
        start = round(second * 24_000)
        pcm[start : start + len(speech.pcm)] = speech.pcm
        phones += [Phone(p.symbol, p.start_sample + start, p.end_sample + start) for p in speech.phones]
    return pcm, tuple(phones)


SILENCE = np.zeros(FRAMES * 1000, np.int16)
MONOLOGUE = on_timeline(
    (0.5, "I put the blue folder on the shelf beside the printer."),
    (5.0, "We had such a lovely time by the lake."),
    (9.0, "The bridge is closed until the end of May."),
)


def starts(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int)])) == 1)


def phrase_ends_s(pcm: np.ndarray, at_least_s: float = 0.8) -> list[float]:
    """Ends of phrases by energy alone, independent of `voice_cues`: reactions must be explained by the audio."""
    power = np.sqrt((pcm.reshape(-1, 240).astype(np.float64) ** 2).mean(axis=1)) > 260
    active = np.flatnonzero(power)
    breaks = np.flatnonzero(np.diff(active) > 20)
    firsts, lasts = active[np.r_[0, breaks + 1]], active[np.r_[breaks, len(active) - 1]]
    return [(b + 1) / 100 for a, b in zip(firsts, lasts, strict=True) if (b + 1 - a) / 100 >= at_least_s]


def test_animate_is_deterministic() -> None:
    first, second = (animate(*MONOLOGUE, SILENCE, "happy", 5, FRAMES) for _ in range(2))
    assert np.array_equal(first.tracks.blendshapes, second.tracks.blendshapes)
    assert np.array_equal(first.tracks.rotation, second.tracks.rotation)
    assert not np.array_equal(first.tracks.gaze, animate(*MONOLOGUE, SILENCE, "happy", 6, FRAMES).tracks.gaze)


def test_jaw_follows_own_voice() -> None:
    animation = animate(*MONOLOGUE, SILENCE, "neutral", 1, FRAMES)
    own = measure_cues(MONOLOGUE[0], FRAMES)
    assert np.corrcoef(animation.tracks.blendshapes[:, JAW], own.level)[0, 1] > 0.6
    assert set(animation.state[own.speech]) == {SPEAK}
    assert animation.tracks.blendshapes[animation.state == SPEAK, JAW].max() > 0.3


@pytest.mark.parametrize("voice", ["hibari", "joe"])
def test_bilabials_close_the_lips(voice: str) -> None:
    pcm, phones = on_timeline((0.5, "Papa bought a big pumpkin pie before the party began."), voice=voice)
    curves = mouth_curves(phones, pcm, FRAMES)
    lips = [phone for phone in phones if phone.symbol in "BPM"]
    assert len(lips) >= 7
    for phone in lips:
        middle = (phone.start_sample + phone.end_sample) / 2000
        near = [round(middle), int(middle), int(middle) + 1]
        assert curves[near, JAW].min() < 0.04
        assert curves[near, ARKIT_INDEX["mouthPress_L"]].max() > 0.3
    vowels = [round((p.start_sample + p.end_sample) / 2000) for p in phones if p.symbol in ("AA", "AY", "AO")]
    assert np.mean(curves[vowels, JAW]) > 0.25


def test_rounded_vowels_pucker_before_they_are_audible() -> None:
    pcm, phones = on_timeline((1.0, "You two."))
    pucker = mouth_curves(phones, pcm, FRAMES)[:, ARKIT_INDEX["mouthPucker"]]
    audio = next(p for p in phones if p.symbol == "UW").start_sample / 1000
    assert pucker.max() > 0.5
    assert 0 < audio - np.flatnonzero(pucker > 0.1)[0] < 6


def test_mouth_rests_while_listening() -> None:
    animation = animate(SILENCE, (), MONOLOGUE[0], "neutral", 1, FRAMES)
    assert not (animation.state == SPEAK).any()
    assert (animation.state == LISTEN).mean() > 0.5
    assert animation.tracks.blendshapes[:, JAW].max() == 0.0
    assert animation.tracks.blendshapes[:, ARKIT_INDEX["mouthPucker"]].max() == 0.0


def test_nods_follow_the_ends_of_partner_phrases() -> None:
    animation = animate(SILENCE, (), MONOLOGUE[0], "neutral", 1, FRAMES)
    ends = phrase_ends_s(MONOLOGUE[0])
    nods = starts(animation.nod) / 24
    assert len(nods) == len(ends) >= 3
    for nod, end in zip(nods, ends, strict=True):
        assert 0.3 <= nod - end <= 0.5
        first = round(nod * 24)
        assert animation.tracks.rotation[first : first + 12, 0].max() - animation.tracks.rotation[first - 1, 0] > 0.1


def test_nods_depend_on_the_partner_audio() -> None:
    pieces = MONOLOGUE[0].reshape(-1, 48_000)  # 2 s each
    shuffled = pieces[np.random.default_rng(0).permutation(len(pieces))].reshape(-1)
    before = animate(SILENCE, (), MONOLOGUE[0], "neutral", 1, FRAMES)
    after = animate(SILENCE, (), shuffled, "neutral", 1, FRAMES)
    assert starts(before.nod).tolist() != starts(after.nod).tolist()
    causes = np.asarray(phrase_ends_s(shuffled))
    assert all(np.any((nod - causes >= 0.2) & (nod - causes <= 0.8)) for nod in starts(after.nod) / 24)
    assert np.array_equal(before.tracks.gaze, after.tracks.gaze)  # randomness does not depend on the partner


def test_smile_follows_partner_loudness_with_delay() -> None:
    animation = animate(SILENCE, (), MONOLOGUE[0], "neutral", 1, FRAMES)
    level = measure_cues(MONOLOGUE[0], FRAMES).level
    lags = {lag: np.corrcoef(level[: FRAMES - lag], animation.smile[lag:])[0, 1] for lag in range(0, 30)}
    assert 0.2 <= max(lags, key=lambda lag: lags[lag]) / 24 <= 0.8
    assert animation.smile.max() > 0.2
    quiet = animate(SILENCE, (), SILENCE, "neutral", 1, FRAMES)
    assert quiet.smile.max() == 0.0
    assert not quiet.nod.any()


def test_blinks_occur_every_few_seconds() -> None:
    animation = animate(*MONOLOGUE, SILENCE, "neutral", 2, FRAMES)
    blinks = starts(animation.tracks.blendshapes[:, ARKIT_INDEX["eyeBlink_L"]] > 0.4)
    assert 2 <= len(blinks) <= 7
    assert np.diff(blinks).min() >= 1.5 * 24


def test_short_answer_counts_as_backchannel() -> None:
    other, _ = on_timeline(
        (0.5, "I put the blue folder on the shelf beside the printer."), (3.6, "It is the thick one.")
    )
    answer_s = phrase_ends_s(other)[0] + 0.4
    pcm, phones = on_timeline((answer_s, "Yeah."))
    animation = animate(pcm, phones, other, "neutral", 1, FRAMES)
    assert len(animation.backchannels) == 1
    assert 0.0 <= animation.backchannels[0][0] / 24 - answer_s <= 0.3


def test_emotions_change_the_face() -> None:
    neutral = animate(SILENCE, (), SILENCE, "neutral", 1, FRAMES).tracks.blendshapes
    for emotion, shapes in EMOTIONS.items():
        felt = animate(SILENCE, (), SILENCE, emotion, 1, FRAMES).tracks.blendshapes
        assert all(felt[:, ARKIT_INDEX[name]].mean() > neutral[:, ARKIT_INDEX[name]].mean() for name in shapes)
    with pytest.raises(ValueError, match="neutral"):
        animate(SILENCE, (), SILENCE, "bored", 1, FRAMES)
    with pytest.raises(ValueError, match="frames"):
        animate(SILENCE, (), SILENCE, ["happy"] * 3, 1, FRAMES)
