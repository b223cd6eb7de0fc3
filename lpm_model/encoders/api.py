"""Protocols of audio and text encoders."""

from typing import Protocol

from torch import Tensor


class AudioEncoder(Protocol):
    """Reads a fixed window around each span, the same offline and streaming."""

    width: int
    past_samples: int
    lookahead_samples: int

    def encode(self, audio: Tensor) -> Tensor:
        """Encode [B, past_samples + 4000 F + lookahead_samples] in [-1, 1] to [B, F, n, width]."""
        ...


class TextEncoder(Protocol):
    """Maps texts of any length to a fixed number of tokens, zero after the end of a text."""

    width: int
    tokens: int

    def encode(self, texts: list[str]) -> Tensor:
        """Encode B texts to [B, tokens, width]."""
        ...
