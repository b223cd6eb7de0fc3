"""PCM16 buffers of a live session: the character's speech queue and the jitter buffer of the user's microphone."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]


def rms(pcm: Pcm) -> float:
    """Return the root mean square of int16 samples [n], full scale 1.0; 0 for none."""
    return float(np.sqrt(np.mean(np.square(pcm.astype(np.float32) / 32768.0)))) if pcm.size else 0.0


class SampleQueue:
    """FIFO of int16 samples that never copies what is already stored."""

    def __init__(self) -> None:
        self._parts: deque[Pcm] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, pcm: Pcm) -> None:
        """Add samples [n] at the end."""
        if pcm.size:
            self._parts.append(pcm)
            self._size += pcm.size

    def peek(self, count: int) -> Pcm:
        """Return the first `count` samples, or all there are, without removing them."""
        taken: list[Pcm] = []
        missing = min(count, self._size)
        for part in self._parts:
            if missing <= 0:
                break
            taken.append(part[:missing])
            missing -= taken[-1].size
        return np.concatenate(taken) if taken else np.zeros(0, np.int16)

    def drop(self, count: int) -> int:
        """Remove the first `count` samples, or all there are; return how many were removed."""
        dropped = min(count, self._size)
        left = dropped
        while left:
            part = self._parts.popleft()
            if part.size > left:
                self._parts.appendleft(part[left:])
                left = 0
            else:
                left -= part.size
        self._size -= dropped
        return dropped

    def clear(self) -> None:
        """Remove all samples."""
        self._parts.clear()
        self._size = 0


class UserBuffer:
    """Jitter buffer of live microphone audio: bounded, drops the oldest first, refills after an underrun.

    `position` counts the samples of the user's stream that the model has consumed or that were dropped, so that the
    delay from microphone to video can be measured.
    """

    WINDOW_CHUNKS = 24
    """A surplus that was not needed over this many chunks only adds latency: it is cut to half the allowed surplus."""

    def __init__(self, *, capacity: int, chunk: int, lookahead: int, surplus: int) -> None:
        self._queue = SampleQueue()
        self._capacity = max(capacity, 2 * (chunk + lookahead))
        self._chunk, self._lookahead, self._surplus = chunk, lookahead, surplus
        self._flowing = False
        self._lows: deque[int] = deque(maxlen=self.WINDOW_CHUNKS)
        self.position = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def append(self, pcm: Pcm) -> int:
        """Add live samples [n]; return how many old ones were dropped."""
        self._queue.append(pcm)
        return self._drop_oldest(len(self._queue) - self._capacity)

    def take(self) -> tuple[Pcm, bool]:
        """Return the next chunk and look-ahead, zero-padded [chunk + lookahead], and whether any sample is real."""
        window = np.zeros(self._chunk + self._lookahead, np.int16)
        if not self._flowing and len(self._queue) < window.size:
            return window, False
        real = self._queue.peek(window.size)
        window[: real.size] = real
        self._flowing = real.size == window.size
        self.position += self._queue.drop(self._chunk)
        self._lows.append(len(self._queue) - self._lookahead)
        if len(self._lows) == self._lows.maxlen and min(self._lows) > self._surplus:
            self._drop_oldest(min(self._lows) - self._surplus // 2)
            self._lows.clear()
        return window, bool(real.size)

    def _drop_oldest(self, count: int) -> int:
        dropped = self._queue.drop(max(count, 0))
        self.position += dropped
        self.dropped += dropped
        return dropped
