"""Which pictures of a video need no decoding: those that are not asked for and that no other picture builds on."""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import VIDEO_FPS

_AHEAD = 32
"""Packets read before one is decoded: twice as many as a codec can move a picture from the order of display."""
TIE_S = 1e-6
"""A picture that is not nearer to a tick than the next one by so much leaves it to that one: 30 pictures a second have
such a tie every fifth time."""
_LEAP_S = 2.0
"""So long before and after a key picture nothing may be asked for if what lies before it is to be left out: pictures
that are shown before it may come after it."""
_MOST_HELD = 32 << 20
"""Bytes that wait at most for the next key picture."""
_ROUNDING = 1e-7
"""Ticks by which a middle may be off, as it is a float."""


class LeapFailed(Exception):
    """What the file calls a key picture is none to start from: it has to be decoded without leaps."""


def decoded(
    container: Any, stream: Any, wanted: NDArray[np.bool_] | None, leaps: bool = True
) -> Iterator[tuple[Any, int]]:
    """(decoded frame, packets left out since the frame before) in order.

    A picture stands for the ticks of the clock (24 a second from the first picture) that are nearer to it than to its
    neighbours. Where none of them is asked for, it is left out if its codec says that no other picture refers to it. No
    other tick's nearest picture changes by that: the middle between its two neighbours lies between its own two. And
    all is left out between two key pictures around which nothing is asked for.

    Args:
        container: the opened file.
        stream: its video.
        wanted: ticks that are asked for [ticks], none beyond; None = all.
        leaps: leave out what lies between key pictures.

    Raises:
        LeapFailed: a leap did not land where it should have.
    """
    context, skips = stream.codec_context, False
    clock = _Clock(wanted)
    left_out, landing = 0, None
    for packet, idle, leapt in _with_leaps(_with_spans(container.demux(stream)), clock, leaps):
        if leapt:
            for frame in context.decode(None):
                yield frame, left_out
                left_out = 0
            context.flush_buffers()
            left_out, landing = left_out + leapt, packet.pts
        if idle != skips:
            context.skip_frame, skips = ("NONREF" if idle else "DEFAULT"), idle
        frames = packet.decode()
        left_out += idle and not frames
        for frame in frames:
            if landing is not None and (frame.pts != landing or frame.is_corrupt):
                raise LeapFailed
            landing = None
            clock.start(frame)
            yield frame, left_out
            left_out = 0
    if landing is not None:
        raise LeapFailed


class _Clock:
    """The ticks that are asked for, on the file's own time."""

    def __init__(self, wanted: NDArray[np.bool_] | None) -> None:
        self._wanted = wanted
        self._ticks = None if wanted is None else np.flatnonzero(wanted)
        self._zero_s: float | None = None

    def start(self, frame: Any) -> None:
        """Time begins with the first picture."""
        self._zero_s = frame.time if self._zero_s is None else self._zero_s

    def idle(self, span_s: tuple[float, float] | None) -> bool:
        """Whether no tick that is asked for lies in a span, for certain."""
        if span_s is None or self._zero_s is None:
            return False
        low, high = ((edge_s - TIE_S - self._zero_s) * VIDEO_FPS for edge_s in span_s)
        first, after = max(math.ceil(low - _ROUNDING), 0), max(math.ceil(high + _ROUNDING), 0)
        return first >= after if self._wanted is None else not self._wanted[first:after].any()

    def alone(self, packet: Any, reach_s: float) -> bool:
        """Whether nothing is asked for within so long before and after a packet's picture, for certain."""
        if packet.pts is None or self._zero_s is None or self._ticks is None:
            return False
        at_s = float(packet.pts * packet.time_base) - self._zero_s
        first, after = (math.floor((at_s + side * reach_s) * VIDEO_FPS) + (side > 0) for side in (-1, 1))
        following = int(np.searchsorted(self._ticks, first))
        return bool(following == len(self._ticks) or self._ticks[following] > after)


def _with_leaps(
    packets: Iterator[tuple[Any, tuple[float, float] | None]], clock: _Clock, leaps: bool
) -> Iterator[tuple[Any, bool, int]]:
    """(packet, whether its picture is not asked for, packets left out before it); after some it is a key picture."""
    held: list[tuple[Any, bool]] = []
    held_bytes = dropped = 0
    for packet, span_s in packets:
        idle = clock.idle(span_s)
        if leaps and idle and packet.is_keyframe and clock.alone(packet, _LEAP_S):
            held, held_bytes, dropped = [], 0, dropped + len(held)
        elif not held:
            yield packet, idle, 0
            continue
        held.append((packet, idle))
        held_bytes += packet.size
        if idle and held_bytes < _MOST_HELD and clock.alone(packet, _LEAP_S / 2):
            continue
        for one, asked_for_none in held:
            yield one, asked_for_none, dropped
            dropped = 0
        held, held_bytes = [], 0


def _with_spans(packets: Iterator[Any]) -> Iterator[tuple[Any, tuple[float, float] | None]]:
    """Each packet and the seconds that are nearer to its picture than to its neighbours; None where not known."""
    ahead: deque[Any] = deque()
    near: deque[int] = deque()
    in_order: list[int] = []
    for packet in chain(packets, repeat(None, _AHEAD)):
        ahead.append(packet)
        if packet is not None and packet.pts is not None and not packet.is_discard:
            near.append(packet.pts)
            insort(in_order, packet.pts)
            if len(near) > 2 * _AHEAD + 1:
                del in_order[bisect_left(in_order, near.popleft())]
        if len(ahead) > _AHEAD and (first := ahead.popleft()) is not None:
            yield first, _span_s(first, in_order)


def _span_s(packet: Any, near: Sequence[int]) -> tuple[float, float] | None:
    """From the middle between a picture and the one before it to that between it and the one after it (s)."""
    if packet.pts is None or packet.is_discard:
        return None
    before, after = bisect_left(near, packet.pts) - 1, bisect_right(near, packet.pts)
    if before < 0 or after == len(near):
        return None
    unit_s = float(packet.time_base) / 2
    return (near[before] + packet.pts) * unit_s, (packet.pts + near[after]) * unit_s
