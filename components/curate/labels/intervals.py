"""Find turns, backchannels, overlaps and interruptions between two people, as intervals of frames.

Definitions, all on the per-frame speech of both people:
  spurt         speech of one person; silences up to `bridge_s` belong to it (talk-spurt: Brady 1968, 200 ms; Heldner
                and Edlund 2010, "Pauses, gaps and overlaps in conversations", J. Phonetics 38)
  backchannel   a spurt of at most `backchannel_s` with the partner's speech within a second on both sides, where the
                partner keeps the floor: the next spurt after it is the partner's (Yngve 1970)
  turn          the spurts of one person, and the pauses between them, until the partner takes the floor with a spurt
                that is not a backchannel (Sacks, Schegloff and Jefferson 1974)
  overlap       both people speak
  interruption  a turn that begins while the partner speaks and outlasts the partner's spurt, with an overlap of at
                least `interruption_s`; it spans the overlap and belongs to the person who started second. A shorter
                overlap is an ordinary change of turns.
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
    """A span of frames with a conversational event."""

    start: int
    """First frame."""
    stop: int
    """Frame after the last."""
    kind: Kind
    """Type of event."""
    who: str
    """Person the event belongs to: "own", "other" or, for an overlap, "both"."""


_Spurt = tuple[int, int, int]
"""(start, stop, 0 own or 1 other)."""


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (start, stop) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def find_intervals(own: NDArray[np.bool_], other: NDArray[np.bool_], config: IntervalConfig) -> list[Interval]:
    """Find the intervals of a conversation.

    Args:
        own: frames in which the person speaks, bool [T].
        other: frames in which the partner speaks, bool [T].
        config: limits.

    Returns:
        Intervals sorted by start. Swapping the people swaps "own" and "other" and changes nothing else.
    """
    spurts = _spurts(own, 0, config) + _spurts(other, 1, config)
    spurts.sort(key=lambda spurt: (spurt[0], spurt[1], spurt[2]))
    short = [_is_backchannel(spurt, spurts, config) for spurt in spurts]
    names = ("own", "other")
    found = [
        Interval(start=a, stop=b, kind="backchannel", who=names[who])
        for (a, b, who), is_short in zip(spurts, short, strict=True)
        if is_short
    ]
    held = [spurt for spurt, is_short in zip(spurts, short, strict=True) if not is_short]
    found += [Interval(start=a, stop=b, kind="turn", who=names[who]) for a, b, who in _turns(held)]
    found += [Interval(start=a, stop=b, kind="overlap", who="both") for a, b in _overlaps(spurts)]
    found += [
        Interval(start=second[0], stop=min(first[1], second[1]), kind="interruption", who=names[second[2]])
        for first, second in _takeovers(held)
        if first[1] - second[0] >= config.interruption_s * VIDEO_FPS
    ]
    return sorted(found)


def _spurts(speaks: NDArray[np.bool_], who: int, config: IntervalConfig) -> list[_Spurt]:
    """Return runs of speech, joined across short silences."""
    joined: list[_Spurt] = []
    for start, stop in runs(speaks):
        if joined and start - joined[-1][1] <= config.bridge_s * VIDEO_FPS:
            joined[-1] = (joined[-1][0], stop, who)
        else:
            joined.append((start, stop, who))
    return joined


def _is_backchannel(spurt: _Spurt, spurts: list[_Spurt], config: IntervalConfig) -> bool:
    """Return whether a spurt is short and falls inside the partner's turn."""
    start, stop, who = spurt
    if stop - start > config.backchannel_s * VIDEO_FPS:
        return False
    theirs = [(a, b) for a, b, side in spurts if side != who]
    before = any(a < start and b > start - VIDEO_FPS for a, b in theirs)
    after = any(a < stop + VIDEO_FPS and b > stop for a, b in theirs)
    own_before = max((b for a, b, side in spurts if side == who and b <= start), default=-VIDEO_FPS)
    own_after = min((a for a, b, side in spurts if side == who and a >= stop), default=stop + 2 * VIDEO_FPS)
    # Own words just before or after make it part of a turn.
    return before and after and start - own_before > VIDEO_FPS // 2 and own_after - stop > VIDEO_FPS // 2


def _turns(held: list[_Spurt]) -> list[_Spurt]:
    """Join successive spurts of one person into one turn until the partner's spurt comes between them."""
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


def _overlaps(spurts: list[_Spurt]) -> list[tuple[int, int]]:
    """Return the spans in which both people have a spurt."""
    first = [(a, b) for a, b, who in spurts if who == 0]
    second = [(a, b) for a, b, who in spurts if who == 1]
    return [(max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) < min(b, d)]


def _takeovers(held: list[_Spurt]) -> list[tuple[_Spurt, _Spurt]]:
    """Return pairs (first, second) of spurts where the second starts during the first and outlasts it."""
    return [
        (first, second)
        for first in held
        for second in held
        if first[2] != second[2] and first[0] < second[0] < first[1] < second[1]
    ]
