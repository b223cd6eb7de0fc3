"""Per-frame states (speak, listen, idle, discard) and their run-length encoding."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lpm_model.config import STATES

IDLE, SPEAK, LISTEN, DISCARD = STATES.values()
STATE_NAMES = {code: name for name, code in STATES.items()}
"""Name of each state code."""


def encode_states(states: Iterable[int]) -> list[list[int]]:
    """Run-length encode a state track: [[state, frames], ...]."""
    runs: list[list[int]] = []
    for state in states:
        if runs and runs[-1][0] == int(state):
            runs[-1][1] += 1
        else:
            runs.append([int(state), 1])
    return runs


def decode_states(runs: Iterable[Sequence[int]]) -> NDArray[np.uint8]:
    """Decode a run-length code to a state track, uint8 [frames]."""
    return np.concatenate([np.full(length, state, np.uint8) for state, length in runs] or [np.zeros(0, np.uint8)])
