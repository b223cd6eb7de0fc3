"""Schedule generation at most one chunk ahead of the playhead, so that an interruption takes effect at once."""


class Pace:
    """Schedule of one viewer's chunks on the wall clock (seconds of a monotonic clock).

    The playhead starts when the first chunk is delivered. Chunk n may be generated from the moment chunk n - 1 starts
    to play, and is due when the playhead reaches it. A short delay is caught up; after one longer than a chunk the
    viewer has seen a stall, and the schedule restarts from there.
    """

    def __init__(self, chunk_s: float) -> None:
        if chunk_s <= 0:
            raise ValueError(f"chunk_s is {chunk_s}; it must be above 0")
        self.chunk_s = chunk_s
        self._delivered = 0
        self._start = 0.0

    @property
    def release(self) -> float:
        """Earliest time to generate the next chunk; 0 for the first."""
        return self._start + (self._delivered - 1) * self.chunk_s if self._delivered else 0.0

    def delivered(self, now: float) -> bool:
        """Record that the next chunk was delivered at `now`; return whether that was too late for the playhead."""
        if not self._delivered:
            self._start = now
            self._delivered = 1
            return False
        late = now - (self._start + self._delivered * self.chunk_s)
        if late > self.chunk_s:
            self._start += late
        self._delivered += 1
        return late > 0
