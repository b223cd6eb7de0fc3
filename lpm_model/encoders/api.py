"""What the model asks of any audio and text encoder."""

from typing import Protocol

from torch import Tensor


class AudioEncoder(Protocol):
    """Sees a fixed window around each span, the same offline and streaming (design: audio context)."""

    width: int
    past_samples: int
    lookahead_samples: int

    def encode(self, audio: Tensor) -> Tensor:
        """[B, past_samples + 4000 F + lookahead_samples] in [-1, 1] to [B, F, n, width]."""
        ...


class TextEncoder(Protocol):
    """Texts of any length to a fixed number of tokens, zero behind a text's end."""

    width: int
    tokens: int

    def encode(self, texts: list[str]) -> Tensor:
        """[B, tokens, width]."""
        ...
