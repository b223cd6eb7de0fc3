"""State labels of closed-form cases."""

import dataclasses

import numpy as np
import pytest

from components.curate.config import StateConfig
from components.curate.labels.states import (
    decide_speaking,
    discard_dubbed,
    extend_listening,
    gate_audio,
    label_people,
    merge_short,
    moving_spread,
)
from components.dataset.states import DISCARD, IDLE, LISTEN, SPEAK, decode_states, encode_states

CONFIG = StateConfig(listen_hold_s=0.0)
FRAMES = 144


def talking(start: int = 0, stop: int = FRAMES) -> np.ndarray:
    """A mouth that opens and closes four times a second within start..stop and rests elsewhere."""
    at = np.arange(FRAMES)
    gap = 0.02 + 0.12 * (1 + np.sin(2 * np.pi * 4 * at / 24)) * ((at >= start) & (at < stop))
    return gap.astype(np.float32)


def speech(start: int, stop: int) -> np.ndarray:
    at = np.arange(FRAMES)
    return np.where((at >= start) & (at < stop), 0.97, 0.03).astype(np.float32)


STILL = np.full(FRAMES, 0.02, np.float32)


@pytest.mark.parametrize(
    ("audio", "mouth", "expected"),
    [
        ("speech", "moves", SPEAK),
        ("speech", "still", LISTEN),
        ("none", "still", IDLE),
        ("none", "moves", DISCARD),
    ],
)
def test_voice_and_mouth_decide_the_state(audio: str, mouth: str, expected: int) -> None:
    probability = speech(0, FRAMES) if audio == "speech" else speech(0, 0)
    gap = talking() if mouth == "moves" else STILL
    (labels,) = label_people(probability, [gap], CONFIG)
    assert (labels.states == expected).mean() > 0.95
    assert labels.confidence.mean() > 0.8


def test_decide_speaking_assigns_a_voice_without_moving_mouth_to_somebody_off_screen() -> None:
    speaking = decide_speaking(speech(0, FRAMES), [STILL, talking(72, FRAMES)], CONFIG)
    assert not speaking.people[0].any()
    assert speaking.people[1][80:].all()
    assert speaking.offscreen[:64].all()
    np.testing.assert_allclose(speaking.posterior.sum(axis=1), 1.0)


def test_discard_dubbed_drops_speech_out_of_sync() -> None:
    (labels,) = label_people(speech(0, FRAMES), [talking()], CONFIG)
    dubbed = discard_dubbed(labels, np.full(FRAMES, -0.9, np.float32), CONFIG)
    assert (dubbed.states == DISCARD).mean() > 0.95
    fine = discard_dubbed(labels, np.full(FRAMES, 0.4, np.float32), CONFIG)
    assert (fine.states == SPEAK).mean() > 0.95


def test_label_people_separates_two_people_taking_turns() -> None:
    first, second = label_people(speech(0, FRAMES), [talking(0, 72), talking(72, FRAMES)], CONFIG)
    expected = np.where(np.arange(FRAMES) < 72, SPEAK, LISTEN)
    away_from_turn = np.abs(np.arange(FRAMES) - 72) > 6
    assert (first.states == expected)[away_from_turn].all()
    assert (second.states == np.where(expected == SPEAK, LISTEN, SPEAK))[away_from_turn].all()


def test_a_talking_mouth_outranks_a_restless_one() -> None:
    restless = (0.02 + 0.02 * np.sin(np.arange(FRAMES) * 0.9)).astype(np.float32)
    alone = label_people(speech(0, FRAMES), [restless], CONFIG)[0]
    with_talker = label_people(speech(0, FRAMES), [restless, talking()], CONFIG)[0]
    assert (alone.states == SPEAK).mean() > 0.9
    assert (with_talker.states != SPEAK).all()


def test_louder_microphone_decides_between_two_moving_mouths() -> None:
    side = np.where(np.arange(FRAMES) < 72, 1.0, -1.0).astype(np.float32)
    pair = label_people(speech(0, FRAMES), [talking(), talking()], CONFIG, loudness_side=side, pair=(0, 1))
    assert (pair[0].states[:64] == SPEAK).all()
    assert (pair[1].states[80:] == SPEAK).all()
    assert (pair[1].states[:60] != SPEAK).all()


def test_undetected_face_listens_while_another_person_speaks() -> None:
    gone = np.full(FRAMES, np.nan, np.float32)
    hidden, visible = label_people(speech(0, FRAMES), [gone, talking()], CONFIG)
    assert (hidden.states == LISTEN).all()
    assert (visible.states == SPEAK).all()


def test_only_short_pauses_are_labelled_as_speech() -> None:
    probability = speech(0, FRAMES)
    probability[70:73] = 0.4
    (bridged,) = label_people(probability, [talking()], CONFIG)
    assert (bridged.states == SPEAK).all()
    probability[60:90] = 0.02
    (split,) = label_people(probability, [np.where(probability > 0.5, talking(), STILL)], CONFIG)
    assert (split.states[65:85] == IDLE).all()


def test_extend_listening_fills_idle_frames() -> None:
    states = np.array([LISTEN] * 5 + [IDLE] * 10 + [SPEAK] * 3 + [LISTEN] * 2 + [IDLE] * 2 + [SPEAK], np.uint8)
    extended = extend_listening(states, 4)
    assert encode_states(extended) == [[LISTEN, 9], [IDLE, 6], [SPEAK, 3], [LISTEN, 4], [SPEAK, 1]]


def test_merge_short_joins_the_longer_neighbour() -> None:
    states = np.array([0] * 10 + [1] * 2 + [2] * 20, np.uint8)
    assert encode_states(merge_short(states, 4)) == [[0, 10], [2, 22]]


def test_encode_states_round_trip() -> None:
    states = np.array([0, 0, 1, 255, 255, 2], np.uint8)
    assert (decode_states(encode_states(states)) == states).all()
    assert decode_states([]).shape == (0,)


def test_label_people_accepts_zero_frames() -> None:
    (labels,) = label_people(np.zeros(0, np.float32), [np.zeros(0, np.float32)], CONFIG)
    assert labels.states.shape == (0,)


def test_moving_spread_of_a_square_wave_and_of_nan() -> None:
    assert moving_spread(np.array([0, 1] * 10, np.float32), 5)[10] == pytest.approx(np.sqrt(0.24), abs=1e-6)
    assert np.isnan(moving_spread(np.full(20, np.nan, np.float32), 5)).all()


def test_gate_audio_mutes_one_state_and_keeps_idle_frames() -> None:
    states = np.array([SPEAK] * 10 + [IDLE] * 10 + [LISTEN] * 10, np.uint8)
    track = np.full(30_000, 1000, np.int16)
    speak, listen = gate_audio(track, states, LISTEN, 1000), gate_audio(track, states, SPEAK, 1000)
    assert (speak[:19_000] == 1000).all()
    assert (speak[20_500:] == 0).all()
    assert (listen[11_000:] == 1000).all()
    assert (listen[:9_500] == 0).all()
    assert np.abs(np.diff(speak.astype(int))).max() < 20  # a ramp, not a click


def test_gate_audio_mutes_discarded_frames() -> None:
    states = np.full(10, DISCARD, np.uint8)
    assert not gate_audio(np.full(10_000, 9, np.int16), states, LISTEN, 1000).any()


def test_short_restless_spans_are_not_discarded() -> None:
    brief = talking(60, 66)
    (labels,) = label_people(speech(0, 0), [brief], dataclasses.replace(CONFIG, min_discard_s=1.5))
    assert (labels.states == IDLE).all()
