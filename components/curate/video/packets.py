"""Selective decoding: skip frames that are not wanted and that no other frame references."""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import VIDEO_FPS

_READ_AHEAD = 32
"""Packets read ahead of the decoder: twice the largest reordering distance of a codec."""
TIE_S = 1e-6
"""A frame must be nearer to a tick of the 24 fps clock than the next one by this; at 30 fps every fifth frame ties."""
_GOP_MARGIN_S = 2.0
"""No frame may be wanted this close to a keyframe if the packets before it are to be skipped: frames that are displayed
before the keyframe may follow it in the file."""
_MAX_HELD_BYTES = 32 << 20
"""Maximum bytes of packets that are buffered until the next keyframe."""
_ROUNDING = 1e-7
"""Rounding error of a midpoint between two frames (ticks)."""


class GopSkipFailed(Exception):
    """Decoding cannot start from a frame that the file marks as a keyframe; it has to run without GOP skipping."""


def decoded_frames(
    container: Any, stream: Any, wanted: NDArray[np.bool_] | None, skip_gops: bool = True
) -> Iterator[tuple[Any, int]]:
    """Yield (decoded frame, packets skipped since the previous frame) in order.

    A frame covers the ticks of the clock (24 per second from the first frame) that are nearer to it than to its
    neighbours. If none of them is wanted, the frame is skipped if the codec marks it as not referenced by others.
    This does not change the nearest frame of any other tick: the midpoint of its two neighbours is between its own two.
    All packets between two keyframes (a GOP) are skipped if nothing around them is wanted.

    Args:
        container: the opened file.
        stream: its video stream.
        wanted: which ticks are wanted, bool [ticks]; None = all.
        skip_gops: skip whole groups of pictures.

    Raises:
        GopSkipFailed: decoding did not start at the keyframe after skipped packets.
    """
    context, skips = stream.codec_context, False
    clock = _Clock(wanted)
    skipped, keyframe_pts = 0, None
    for packet, idle, dropped in _with_gop_skips(_with_spans(container.demux(stream)), clock, skip_gops):
        if dropped:
            for frame in context.decode(None):
                yield frame, skipped
                skipped = 0
            context.flush_buffers()
            skipped, keyframe_pts = skipped + dropped, packet.pts
        if idle != skips:
            context.skip_frame, skips = ("NONREF" if idle else "DEFAULT"), idle
        frames = packet.decode()
        skipped += idle and not frames
        for frame in frames:
            if keyframe_pts is not None and (frame.pts != keyframe_pts or frame.is_corrupt):
                raise GopSkipFailed
            keyframe_pts = None
            clock.start(frame)
            yield frame, skipped
            skipped = 0
    if keyframe_pts is not None:
        raise GopSkipFailed


class _Clock:
    """The wanted ticks of the 24 fps clock, on the file's own time line."""

    def __init__(self, wanted: NDArray[np.bool_] | None) -> None:
        self._wanted = wanted
        self._ticks = None if wanted is None else np.flatnonzero(wanted)
        self._zero_s: float | None = None

    def start(self, frame: Any) -> None:
        """Set zero to the time of the first frame."""
        self._zero_s = frame.time if self._zero_s is None else self._zero_s

    def idle(self, span_s: tuple[float, float] | None) -> bool:
        """Return whether a span certainly contains no wanted tick."""
        if span_s is None or self._zero_s is None:
            return False
        low, high = ((edge_s - TIE_S - self._zero_s) * VIDEO_FPS for edge_s in span_s)
        first, after = max(math.ceil(low - _ROUNDING), 0), max(math.ceil(high + _ROUNDING), 0)
        return first >= after if self._wanted is None else not self._wanted[first:after].any()

    def alone(self, packet: Any, reach_s: float) -> bool:
        """Return whether certainly no tick is wanted within `reach_s` before and after a packet's frame."""
        if packet.pts is None or self._zero_s is None or self._ticks is None:
            return False
        at_s = float(packet.pts * packet.time_base) - self._zero_s
        first, after = (math.floor((at_s + side * reach_s) * VIDEO_FPS) + (side > 0) for side in (-1, 1))
        following = int(np.searchsorted(self._ticks, first))
        return bool(following == len(self._ticks) or self._ticks[following] > after)


def _with_gop_skips(
    packets: Iterator[tuple[Any, tuple[float, float] | None]], clock: _Clock, skip_gops: bool
) -> Iterator[tuple[Any, bool, int]]:
    """Yield (packet, whether its frame is unwanted, packets skipped before it); skipping ends at a keyframe."""
    held: list[tuple[Any, bool]] = []
    held_bytes = dropped = 0
    for packet, span_s in packets:
        idle = clock.idle(span_s)
        if skip_gops and idle and packet.is_keyframe and clock.alone(packet, _GOP_MARGIN_S):
            held, held_bytes, dropped = [], 0, dropped + len(held)
        elif not held:
            yield packet, idle, 0
            continue
        held.append((packet, idle))
        held_bytes += packet.size
        if idle and held_bytes < _MAX_HELD_BYTES and clock.alone(packet, _GOP_MARGIN_S / 2):
            continue
        for held_packet, held_idle in held:
            yield held_packet, held_idle, dropped
            dropped = 0
        held, held_bytes = [], 0


def _with_spans(packets: Iterator[Any]) -> Iterator[tuple[Any, tuple[float, float] | None]]:
    """Yield each packet with the span (s) that is nearer to its frame than to its neighbours; None where unknown."""
    ahead: deque[Any] = deque()
    near: deque[int] = deque()
    in_order: list[int] = []
    for packet in chain(packets, repeat(None, _READ_AHEAD)):
        ahead.append(packet)
        if packet is not None and packet.pts is not None and not packet.is_discard:
            near.append(packet.pts)
            insort(in_order, packet.pts)
            if len(near) > 2 * _READ_AHEAD + 1:
                del in_order[bisect_left(in_order, near.popleft())]
        if len(ahead) > _READ_AHEAD and (first := ahead.popleft()) is not None:
            yield first, _span_s(first, in_order)


def _span_s(packet: Any, near: Sequence[int]) -> tuple[float, float] | None:
    """Return the midpoints (s) between a frame and the ones before and after it."""
    if packet.pts is None or packet.is_discard:
        return None
    before, after = bisect_left(near, packet.pts) - 1, bisect_right(near, packet.pts)
    if before < 0 or after == len(near):
        return None
    unit_s = float(packet.time_base) / 2
    return (near[before] + packet.pts) * unit_s, (packet.pts + near[after]) * unit_s
