"""Converts the phonemes of a voice to timed ARPAbet phones."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from serving.media.tts import Symbol

ARPABET: Final[dict[str, str]] = {
    "A": "EY", "I": "AY", "O": "OW", "W": "AW", "Y": "OY", "Q": "OW",
    "ɑ": "AA", "a": "AA", "ɒ": "AA", "æ": "AE", "ʌ": "AH", "ə": "AH", "ɐ": "AH", "ᵊ": "AH", "ɔ": "AO", "ɛ": "EH",
    "e": "EY", "ɜ": "ER", "ɚ": "ER", "ɪ": "IH", "ᵻ": "IH", "i": "IY", "o": "OW", "ʊ": "UH", "u": "UW",
    "b": "B", "ʧ": "CH", "d": "D", "ð": "DH", "T": "D", "ɾ": "D", "f": "F", "ɡ": "G", "h": "HH", "ʤ": "JH",
    "k": "K", "l": "L", "m": "M", "n": "N", "ŋ": "NG", "p": "P", "ɹ": "R", "r": "R", "s": "S", "ʃ": "SH", "t": "T",
    "θ": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z", "ʒ": "ZH",
}  # fmt: skip
"""ARPAbet symbol of each phoneme letter; letters without one (stress, punctuation, glottal stop) are not phones."""

_STRESS: Final = frozenset("ˈˌ")
_PAUSE_SAMPLES: Final = 2_400  # a longer filler between phones is a pause; a shorter one is shared by its neighbours


class Phone(NamedTuple):
    """One phone."""

    symbol: str
    """ARPAbet, without stress digit."""
    start_sample: int
    end_sample: int


def to_phones(symbols: Sequence[Symbol]) -> tuple[Phone, ...]:
    """Return the timed phones of an utterance, in order and without overlap; pauses are gaps between them.

    The time of a stress mark is added to the next vowel. Other fillers of up to 100 ms are split between the phones on
    both sides; longer ones and the ends of the utterance stay empty.
    """
    phones: list[Phone] = []
    filler_start = None
    stress_start = None
    for symbol in symbols:
        if symbol.letter in _STRESS:
            stress_start = symbol.start_sample if stress_start is None else stress_start
            continue
        name = ARPABET.get(symbol.letter)
        if name is None:
            filler_start = symbol.start_sample if filler_start is None else filler_start
            continue
        start = symbol.start_sample if stress_start is None else stress_start
        if filler_start is not None and phones and start - phones[-1].end_sample <= _PAUSE_SAMPLES:
            middle = (phones[-1].end_sample + start) // 2
            phones[-1] = phones[-1]._replace(end_sample=middle)
            start = middle
        if symbol.end_sample > start:
            phones.append(Phone(name, start, symbol.end_sample))
        filler_start = stress_start = None
    return tuple(phones)
