"""Speech synthesis with timed phones."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.performer.phones import Phone, to_phones
from serving.media.tts import synthesize_timed, voices

VOICES: tuple[str, ...] = voices()
"""Voices that conversations draw from."""

_BLOCK = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Speech:
    """One spoken text."""

    pcm: NDArray[np.int16]
    """[samples] mono at 24 kHz."""
    phones: tuple[Phone, ...]
    """Its phones on the samples of `pcm`, in order."""


@functools.lru_cache(maxsize=256)
def speak(text: str, voice: str = "hibari", seed: int = 0) -> Speech:
    """Synthesise a text with a packaged neural voice; deterministic in its arguments.

    Args:
        text: English text.
        voice: one of VOICES (see `serving.media.tts.synthesize`).
        seed: seed of the voice's noise.

    Raises:
        ValueError: an unknown voice, or nothing to pronounce.
    """
    utterance = synthesize_timed(text, voice, seed)
    utterance.pcm.setflags(write=False)  # results are shared through the cache
    return Speech(pcm=utterance.pcm, phones=_trim_to_audio(utterance.pcm, to_phones(utterance.symbols)))


def _trim_to_audio(pcm: NDArray[np.int16], phones: tuple[Phone, ...]) -> tuple[Phone, ...]:
    """End phones before a pause where their audio ends; the voices extend the last phone into the silence."""
    power = np.abs(np.pad(pcm.astype(np.float32), (0, -len(pcm) % _BLOCK)).reshape(-1, _BLOCK)).mean(axis=1)
    audible = power > 0.04 * power.max()
    trimmed = []
    for index, phone in enumerate(phones):
        last = index + 1 == len(phones) or phones[index + 1].start_sample > phone.end_sample
        end = phone.end_sample
        if last:
            blocks = np.flatnonzero(audible[phone.start_sample // _BLOCK : -(-end // _BLOCK)])
            sounding = phone.start_sample + (int(blocks[-1]) + 1) * _BLOCK if len(blocks) else phone.start_sample
            end = min(end, max(sounding, phone.start_sample + 4 * _BLOCK))
        trimmed.append(phone._replace(end_sample=end))
    return tuple(trimmed)
