"""Dialogue scripts: two-person conversations from a bank of everyday sentences."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml

from lpm_model.config import AUDIO_RATE

Bank = Literal["train", "heldout"]
Kind = Literal["sentence", "backchannel"]

_SENTENCES: Final = Path(__file__).with_name("sentences.yaml")
_CUT_AFTER_S: Final = 0.3  # how long an interrupted person keeps talking
_TAIL_S: Final = 0.3  # silence at the end of a conversation
_FEELINGS: Final = {
    "neutral": 0.36, "question": 0.24, "happy": 0.12, "sad": 0.06, "surprised": 0.08, "angry": 0.06, "thoughtful": 0.08
}  # fmt: skip
_LOUDNESS: Final = {"happy": 1.15, "sad": 0.75, "surprised": 1.25, "angry": 1.3, "thoughtful": 0.9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One spoken line of a conversation."""

    side: Literal["a", "b"]
    """Who speaks."""
    text: str
    """Spoken text."""
    start_sample: int
    """First sample on the conversation's time base (24 kHz)."""
    length_samples: int
    """Audible length; shorter than the synthesised speech if the partner interrupts."""
    emotion: str
    """Emotion: a key of `behaviour.EMOTIONS`."""
    gain: float
    """Gain relative to the voice's own level."""
    kind: Kind
    """A sentence of the current speaker, or a backchannel of the listener."""

    @property
    def end_sample(self) -> int:
        """First sample after the line."""
        return self.start_sample + self.length_samples


def sentences(bank: Bank) -> dict[str, list[str]]:
    """Return the sentences of a bank by emotion.

    Raises:
        ValueError: an unknown bank.
    """
    banks = _load()
    if bank not in ("train", "heldout"):
        raise ValueError(f"unknown bank {bank!r}: give train or heldout")
    return {feeling: list(texts) for feeling, texts in banks[bank].items()}


def backchannels() -> list[str]:
    """Return the backchannels of a listener; both banks share them."""
    return list(_load()["backchannels"])


@functools.cache
def _load() -> dict[str, Any]:
    banks: dict[str, Any] = yaml.safe_load(_SENTENCES.read_text(encoding="utf-8"))
    return banks


def estimated_length(side: str, text: str) -> int:
    """Estimate the samples of a text at an ordinary pace, for scripts without a voice; `side` is ignored."""
    return int(AUDIO_RATE * (0.35 + 0.062 * len(text))) if side else 0


def write_script(
    seed: int, seconds: float, bank: Bank = "train", length: Callable[[str, str], int] = estimated_length
) -> list[Line]:
    """Write a conversation with pauses, overlaps, interruptions and backchannels.

    Args:
        seed: the same seed gives the same conversation.
        seconds: length; every line ends at least 0.3 s before the end.
        bank: bank of sentences.
        length: returns the samples that a side ("a" or "b") needs to say a text.

    Returns:
        Lines, ordered by start.
    """
    return _Writer(np.random.default_rng([seed, 7]), round(seconds * AUDIO_RATE), bank, length).write()


class _Writer:
    """State while a script is written: the lines so far and the unused sentences."""

    def __init__(
        self, rng: np.random.Generator, total_samples: int, bank: Bank, length: Callable[[str, str], int]
    ) -> None:
        self.rng = rng
        self.end = total_samples - round(_TAIL_S * AUDIO_RATE)
        self.length = length
        self.unused = {feeling: list(rng.permutation(texts)) for feeling, texts in sentences(bank).items()}
        self.bank = sentences(bank)
        self.lines: list[Line] = []

    def write(self) -> list[Line]:
        side: Literal["a", "b"] = "a" if self.rng.random() < 0.5 else "b"
        time = self.random_samples(0.4, 1.2)
        after_question = False
        while True:
            feeling = str(self.rng.choice(list(_FEELINGS), p=list(_FEELINGS.values())))
            last = self.add_turn(side, time, feeling, after_question)
            if last is None:
                break
            time = self.next_start(last)
            after_question = last.text.endswith("?")
            side = "b" if side == "a" else "a"
        return sorted((line for line in self.lines if line.end_sample <= self.end), key=lambda line: line.start_sample)

    def add_turn(self, side: Literal["a", "b"], time: int, feeling: str, after_question: bool) -> Line | None:
        """Add one to three sentences of one person; return the last, or None if one does not fit."""
        last = None
        for index in range(int(self.rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))):
            mood = "answer" if after_question and index == 0 else feeling
            line = self.make_line(side, self.draw_sentence(mood), time, mood)
            if line.end_sample > self.end:
                return None
            if last is not None and self.rng.random() < 0.35:
                self.add_backchannel(side, last)
            self.lines.append(line)
            last = line
            time = line.end_sample + self.random_samples(0.3, 0.75)
        return last

    def make_line(self, side: Literal["a", "b"], text: str, time: int, mood: str) -> Line:
        gain = _LOUDNESS.get(mood, 1.0) * float(self.rng.uniform(0.8, 1.2))
        emotion = "neutral" if mood in ("question", "answer") else mood
        samples = self.length(side, text)
        return Line(
            side=side, text=text, start_sample=time, length_samples=samples, emotion=emotion, gain=gain, kind="sentence"
        )

    def add_backchannel(self, side: Literal["a", "b"], previous: Line) -> None:
        """Add a backchannel of the listener shortly after the end of a sentence."""
        listener: Literal["a", "b"] = "b" if side == "a" else "a"
        text = str(self.rng.choice(backchannels()))
        self.lines.append(
            Line(
                side=listener,
                text=text,
                start_sample=previous.end_sample + self.random_samples(0.3, 0.5),
                length_samples=self.length(listener, text),
                emotion="neutral",
                gain=0.8,
                kind="backchannel",
            )
        )

    def next_start(self, last: Line) -> int:
        """Return the sample at which the partner begins: mostly after a gap, sometimes before the end."""
        kind = self.rng.choice(["gap", "long", "overlap", "interruption"], p=[0.68, 0.1, 0.12, 0.1])
        if kind == "gap":
            return last.end_sample + self.random_samples(0.25, 1.0)
        if kind == "long":
            return last.end_sample + self.random_samples(1.2, 2.2)
        if kind == "overlap" or last.length_samples < 2 * AUDIO_RATE:
            return last.end_sample - self.random_samples(0.1, 0.3)
        begin = last.end_sample - self.random_samples(0.6, 1.0)
        cut = begin + round(_CUT_AFTER_S * AUDIO_RATE) - last.start_sample
        self.lines[self.lines.index(last)] = Line(
            side=last.side,
            text=last.text,
            start_sample=last.start_sample,
            length_samples=cut,
            emotion=last.emotion,
            gain=last.gain,
            kind="sentence",
        )
        return begin

    def draw_sentence(self, feeling: str) -> str:
        """Return a random sentence; none is repeated before all of its emotion are used."""
        if not self.unused[feeling]:
            self.unused[feeling] = list(self.rng.permutation(self.bank[feeling]))
        return str(self.unused[feeling].pop())

    def random_samples(self, low: float, high: float) -> int:
        """Return a random duration between `low` and `high` seconds, in samples."""
        return round(float(self.rng.uniform(low, high)) * AUDIO_RATE)
