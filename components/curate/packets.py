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
_ROUNDING = 1e-7
"""Ticks by which a middle may be off, as it is a float."""


def decoded(container: Any, stream: Any, wanted: NDArray[np.bool_] | None) -> Iterator[tuple[Any, int]]:
    """(decoded frame, packets left out since the frame before) in order.

    A picture stands for the ticks of the clock (24 a second from the first picture) that are nearer to it than to its
    neighbours. Where none of them is asked for, it is left out if its codec says that no other picture refers to it. No
    other tick's nearest picture changes by that: the middle between its two neighbours lies between its own two.

    Args:
        container: the opened file.
        stream: its video.
        wanted: ticks that are asked for [ticks], none beyond; None = all.
    """
    context, skips = stream.codec_context, False
    zero_s: float | None = None
    left_out = 0
    for packet, span in _with_spans(container.demux(stream)):
        idle = span is not None and zero_s is not None and not _asked_for(span, zero_s, wanted)
        if idle != skips:
            context.skip_frame, skips = ("NONREF" if idle else "DEFAULT"), idle
        frames = packet.decode()
        left_out += idle and not frames
        for frame in frames:
            zero_s = frame.time if zero_s is None else zero_s
            yield frame, left_out
            left_out = 0


def _asked_for(span: tuple[float, float], zero_s: float, wanted: NDArray[np.bool_] | None) -> bool:
    """Whether a tick that is asked for may lie in a span of seconds of the file's clock."""
    low, high = ((edge_s - TIE_S - zero_s) * VIDEO_FPS for edge_s in span)
    first, after = max(math.ceil(low - _ROUNDING), 0), max(math.ceil(high + _ROUNDING), 0)
    return first < after if wanted is None else bool(wanted[first:after].any())


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
