"""Champion or challenger: pure comparison of two sets of scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from components.deploy.config import GateConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What the gate says."""

    promoted: bool
    """True when the candidate becomes champion."""
    reasons: tuple[str, ...]
    """Why, one sentence each."""


def decide(candidate: Mapping[str, float], champion: Mapping[str, float] | None, config: GateConfig) -> Decision:
    """Compare a candidate with the champion.

    Args:
        candidate: scores of the new model.
        champion: scores of the present one; None when there is none.
        config: the rule.
    """
    unknown = [name for name in config.primary if not math.isfinite(candidate.get(name, math.nan))]
    if unknown:
        return Decision(promoted=False, reasons=(f"no score for {', '.join(unknown)}: a model is not promoted unseen",))
    if champion is None:
        return Decision(promoted=True, reasons=("first model under this name",))
    worse = []
    for name, tolerance in config.tolerances.items():
        old, new = champion.get(name, math.nan), candidate.get(name, math.nan)
        if not math.isfinite(old):
            continue
        if not math.isfinite(new):
            worse.append(f"{name} is missing, the champion has {old:.3f}")
            continue
        loss = new - old if name in config.lower_is_better else old - new
        if loss > tolerance:
            worse.append(f"{name} {new:.3f} is worse than the champion's {old:.3f} by more than {tolerance:g}")
    gain = _mean(candidate, config) - _mean(champion, config)
    names = ", ".join(config.primary)
    if gain < config.minimum_gain:
        worse.append(f"mean of {names} gains {gain:+.3f}, needed is {config.minimum_gain:+.3f}")
    if worse:
        return Decision(promoted=False, reasons=tuple(worse))
    return Decision(promoted=True, reasons=(f"mean of {names} gains {gain:+.3f} and nothing falls behind",))


def _mean(scores: Mapping[str, float], config: GateConfig) -> float:
    signs = [-1.0 if name in config.lower_is_better else 1.0 for name in config.primary]
    values = [scores.get(name, math.nan) for name in config.primary]
    known = [sign * (value if math.isfinite(value) else 0.0) for sign, value in zip(signs, values, strict=True)]
    return sum(known) / len(known)
