"""What happens between two people: turns, backchannels, overlaps and interruptions as intervals of frames.

Definitions, all on the two people's speech per frame:
  spurt         speech of one person; silences up to `bridge_s` belong to it (talk-spurt: Brady 1968, 200 ms; Heldner
                and Edlund 2010, "Pauses, gaps and overlaps in conversations", J. Phonetics 38)
  backchannel   a spurt of at most `backchannel_s` with the other's speech within a second on both sides, and the other
                speaks on without having lost the floor: the next spurt after it is the other's (Yngve 1970)
  turn          the spurts of one person, and the pauses between them, until the other takes the floor with a spurt that
                is no backchannel (Sacks, Schegloff and Jefferson 1974)
  overlap       both speak
  interruption  a turn that begins while the other speaks and outlasts the other's spurt, with an overlap of at least
                `interruption_s`; it spans the overlap and belongs to the one who came in. A shorter one is the slight
                overlap of an ordinary hand-over.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.curate.config import IntervalConfig
from lpm_model.config import VIDEO_FPS

Kind = Literal["turn", "backchannel", "overlap", "interruption"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Interval:
    """A span of frames in which something happens between two people."""

    start: int
    """First frame."""
    stop: int
    """Frame after the last."""
    kind: Kind
    """What it is."""
    who: str
    """The person it belongs to: "own", "other" or, for an overlap, "both"."""


_Spurt = tuple[int, int, int]
"""(start, stop, 0 own or 1 other)."""


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def find_intervals(own: NDArray[np.bool_], other: NDArray[np.bool_], config: IntervalConfig) -> list[Interval]:
    """Intervals of a conversation.

    Args:
        own: bool [T], where one person speaks.
        other: bool [T], where the partner speaks.
        config: limits.

    Returns:
        Intervals in order of their start. Swapping the people swaps "own" and "other" and changes nothing else.
    """
    spurts = _spurts(own, 0, config) + _spurts(other, 1, config)
    spurts.sort(key=lambda spurt: (spurt[0], spurt[1], spurt[2]))
    short = [_is_backchannel(spurt, spurts, config) for spurt in spurts]
    names = ("own", "other")
    found = [
        Interval(start=a, stop=b, kind="backchannel", who=names[who])
        for (a, b, who), brief in zip(spurts, short, strict=True)
        if brief
    ]
    held = [spurt for spurt, brief in zip(spurts, short, strict=True) if not brief]
    found += [Interval(start=a, stop=b, kind="turn", who=names[who]) for a, b, who in _turns(held)]
    found += [Interval(start=a, stop=b, kind="overlap", who="both") for a, b in _both(spurts)]
    found += [
        Interval(start=second[0], stop=min(first[1], second[1]), kind="interruption", who=names[second[2]])
        for first, second in _entries(held)
        if first[1] - second[0] >= config.interruption_s * VIDEO_FPS
    ]
    return sorted(found)


def _spurts(speaks: NDArray[np.bool_], who: int, config: IntervalConfig) -> list[_Spurt]:
    """Runs of speech, joined over short silences."""
    joined: list[_Spurt] = []
    for start, stop in runs(speaks):
        if joined and start - joined[-1][1] <= config.bridge_s * VIDEO_FPS:
            joined[-1] = (joined[-1][0], stop, who)
        else:
            joined.append((start, stop, who))
    return joined


def _is_backchannel(spurt: _Spurt, spurts: list[_Spurt], config: IntervalConfig) -> bool:
    """Short, and inside the other's floor."""
    start, stop, who = spurt
    if stop - start > config.backchannel_s * VIDEO_FPS:
        return False
    theirs = [(a, b) for a, b, side in spurts if side != who]
    before = any(a < start and b > start - VIDEO_FPS for a, b in theirs)
    after = any(a < stop + VIDEO_FPS and b > stop for a, b in theirs)
    own_before = max((b for a, b, side in spurts if side == who and b <= start), default=-VIDEO_FPS)
    own_after = min((a for a, b, side in spurts if side == who and a >= stop), default=stop + 2 * VIDEO_FPS)
    # Words just before or after it make it a part of a turn.
    return before and after and start - own_before > VIDEO_FPS // 2 and own_after - stop > VIDEO_FPS // 2


def _turns(held: list[_Spurt]) -> list[_Spurt]:
    """Successive spurts of one person are one turn until the other's spurt comes between them."""
    turns: list[_Spurt] = []
    last = [-1, -1]  # each person's last turn
    for start, stop, who in held:
        number = last[who]
        if number >= 0 and last[1 - who] < number:
            turns[number] = (turns[number][0], max(stop, turns[number][1]), who)
        else:
            last[who] = len(turns)
            turns.append((start, stop, who))
    return turns


def _both(spurts: list[_Spurt]) -> list[tuple[int, int]]:
    """Where a spurt of each person runs."""
    first = [(a, b) for a, b, who in spurts if who == 0]
    second = [(a, b) for a, b, who in spurts if who == 1]
    return [(max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) < min(b, d)]


def _entries(held: list[_Spurt]) -> list[tuple[_Spurt, _Spurt]]:
    """(who spoke, who came in and outlasted them)."""
    return [
        (first, second)
        for first in held
        for second in held
        if first[2] != second[2] and first[0] < second[0] < first[1] < second[1]
    ]
