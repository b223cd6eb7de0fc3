"""Voices: deterministic speech whose phones match the audio."""

import difflib

import numpy as np
import pytest

from components.performer.phones import ARPABET, to_phones
from components.performer.visemes import TARGETS
from components.performer.voices import VOICES, speak
from serving.media.tts import Symbol, synthesize, synthesize_timed, voices

TEXT = "Maybe we could jump on the boat, or measure the boys' cure?"
VOWELS = {symbol for symbol in ARPABET.values() if symbol[0] in "AEIOU"}
STOPS = {"P", "T", "K", "CH"}


@pytest.mark.parametrize("voice", ["hibari", "joe", "hibari:+4", "joe:-2"])
def test_synthesis_is_deterministic(voice: str) -> None:
    speak.cache_clear()
    first = synthesize(TEXT, voice, seed=3)
    assert first.dtype == np.int16
    assert 2.5 * 24_000 < len(first) < 7 * 24_000
    assert np.array_equal(first, synthesize(TEXT, voice, seed=3))


def test_seed_changes_only_the_noise() -> None:
    first, second = synthesize(TEXT, seed=0), synthesize(TEXT, seed=1)
    assert not np.array_equal(first, second)
    both = min(len(first), len(second))
    assert np.corrcoef(first[:both], second[:both])[0, 1] > 0.8


def test_at_least_six_voices_of_similar_loudness() -> None:
    assert len(voices()) >= 6
    for voice in VOICES:
        pcm = speak("Good morning.", voice).pcm.astype(np.float64) / 32768
        assert 0.02 < np.sqrt(np.mean(pcm**2)) < 0.2
        assert np.abs(pcm).max() <= 0.91


def median_pitch_hz(voice: str) -> float:
    pcm = speak("I love how the garden looks this spring.", voice).pcm[::4] / 32768.0
    windows = pcm[: len(pcm) // 480 * 480].reshape(-1, 480)
    windows = windows[np.sqrt((windows**2).mean(axis=1)) > 0.05]
    found = []
    for window in windows:
        correlation = np.correlate(window, window, "full")[480 - 1 :]
        lag = int(correlation[15:90].argmax()) + 15
        if correlation[lag] > 0.4 * correlation[0]:
            found.append(6000 / lag)
    return float(np.median(found))


def test_pitch_shift_keeps_tempo() -> None:
    assert median_pitch_hz("hibari") > 1.4 * median_pitch_hz("joe")
    assert median_pitch_hz("hibari:+4") / median_pitch_hz("hibari") == pytest.approx(2 ** (4 / 12), rel=0.12)
    assert len(speak(TEXT, "joe:+4").pcm) == pytest.approx(len(speak(TEXT, "joe").pcm), rel=0.15)


@pytest.mark.parametrize("voice", ["hibari", "joe", "hibari:-3"])
def test_phones_match_the_audio(voice: str) -> None:
    speech = speak("Papa took a big pumpkin pie before the party began. Could you pass me the pepper, please?", voice)
    starts = [phone.start_sample for phone in speech.phones]
    assert starts == sorted(starts)
    assert all(0 <= phone.start_sample < phone.end_sample <= len(speech.pcm) for phone in speech.phones)
    assert all(a.end_sample <= b.start_sample for a, b in zip(speech.phones, speech.phones[1:], strict=False))
    levels: dict[bool, list[float]] = {True: [], False: []}
    for phone in speech.phones:
        third = (phone.end_sample - phone.start_sample) // 3
        audio = speech.pcm[phone.start_sample + third : phone.end_sample - third].astype(np.float64)
        if phone.symbol in VOWELS | STOPS:
            levels[phone.symbol in VOWELS].append(float(np.sqrt(np.mean(audio**2))))
    assert np.median(levels[True]) > 2.0 * np.median(levels[False])


def test_phone_times_fit_better_than_shifted_ones() -> None:
    """The voices' phone durations are accurate to a few hundredths of a second."""
    for voice in ("hibari", "joe"):
        speech = speak("Papa took a big pumpkin pie before the party began.", voice)
        level = np.sqrt(np.convolve((speech.pcm / 32768.0) ** 2, np.ones(240) / 240, "same"))
        expected = np.zeros(len(level))
        for phone in speech.phones:
            value = 1.0 if phone.symbol in VOWELS else -1.0 if phone.symbol in {*STOPS, "B", "D", "G"} else 0.0
            expected[phone.start_sample : phone.end_sample] = value
        fits = {
            shift: np.corrcoef(np.roll(expected, shift)[3000:-3000:40], level[3000:-3000:40])[0, 1]
            for shift in range(-2400, 2401, 240)
        }
        assert abs(max(fits, key=lambda shift: fits[shift])) <= 720
        assert fits[0] > 0.35


def test_pauses_stay_empty_and_short_fillers_are_split() -> None:
    phones = to_phones(
        [
            Symbol("b", 0, 100), Symbol("ˈ", 100, 300), Symbol("ɑ", 300, 1000), Symbol(" ", 1000, 1400),
            Symbol("t", 1400, 2000), Symbol(",", 2000, 9000), Symbol("m", 9000, 9500), Symbol(".", 9500, 20_000),
        ]
    )  # fmt: skip
    assert phones == (("B", 0, 100), ("AA", 100, 1200), ("T", 1200, 2000), ("M", 9000, 9500))


def test_every_phone_has_a_mouth_shape() -> None:
    assert set(ARPABET.values()) == set(TARGETS)
    letters = {
        symbol.letter
        for symbol in synthesize_timed("The judge chose thirty yellow ships, boy; sing a measure!").symbols
    }
    assert {ARPABET[letter] for letter in letters if letter in ARPABET} >= {
        "JH",
        "CH",
        "TH",
        "SH",
        "NG",
        "ZH",
        "Y",
        "OY",
    }


@pytest.mark.parametrize(
    ("text", "voice", "message"), [("...", "joe", "pronounce"), ("Hi", "eve", "hibari"), ("Hi", "joe:+9", "within")]
)
def test_invalid_requests_name_the_remedy(text: str, voice: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(text, voice)


def force_align(pcm: np.ndarray, text: str) -> list[tuple[str, float]]:
    """Phones and their midpoints (samples) from forced alignment with pocketsphinx."""
    from pocketsphinx import Decoder
    from scipy.signal import resample_poly

    audio = resample_poly(pcm.astype(np.float64), 2, 3).astype(np.int16).tobytes()
    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    decoder.set_align_text(text)
    for step in range(2):  # words first, then the phones inside them
        decoder.start_utt()
        decoder.process_raw(audio, full_utt=True)
        decoder.end_utt()
        if step == 0:
            decoder.set_alignment()
    return [(p.name, (p.start + p.duration / 2) * 240) for word in decoder.get_alignment() for p in word]


@pytest.mark.parametrize("voice", ["hibari", "joe", "hibari:-3", "joe:+4"])
def test_phone_times_agree_with_forced_alignment(voice: str) -> None:
    text = "my brother moved into a bigger apartment last month"
    speech = speak(f"{text.capitalize()}.", voice)
    theirs = force_align(speech.pcm, text)
    ours = [(p.symbol, (p.start_sample + p.end_sample) / 2) for p in speech.phones]
    matcher = difflib.SequenceMatcher(a=[one[0] for one in theirs], b=[one[0] for one in ours], autojunk=False)
    offsets = [
        ours[block.b + i][1] - theirs[block.a + i][1]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    assert len(offsets) > 25
    assert np.median(np.abs(offsets)) < 0.03 * 24_000
    assert np.percentile(np.abs(offsets), 90) < 0.08 * 24_000
