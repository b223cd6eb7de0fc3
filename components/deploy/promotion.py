"""The promotion rule: champion or challenger, by comparing two sets of scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from components.deploy.config import PromotionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Result of the promotion rule."""

    promoted: bool
    """True when the candidate becomes the champion."""
    reasons: tuple[str, ...]
    """Reasons, one sentence each."""


def decide(candidate: Mapping[str, float], champion: Mapping[str, float] | None, config: PromotionConfig) -> Decision:
    """Apply the promotion rule to a candidate.

    Args:
        candidate: scores of the new model.
        champion: scores of the current champion; None when there is none.
        config: the promotion rule.
    """
    missing = [name for name in config.primary if not math.isfinite(candidate.get(name, math.nan))]
    if missing:
        reason = f"no score for {', '.join(missing)}: a model without its primary scores is not promoted"
        return Decision(promoted=False, reasons=(reason,))
    if champion is None:
        return Decision(promoted=True, reasons=("first model registered under this name",))
    failures = []
    for name, tolerance in config.tolerances.items():
        old, new = champion.get(name, math.nan), candidate.get(name, math.nan)
        if not math.isfinite(old):
            continue
        if not math.isfinite(new):
            failures.append(f"{name} is missing; the champion has {old:.3f}")
            continue
        loss = new - old if name in config.lower_is_better else old - new
        if loss > tolerance:
            failures.append(f"{name} {new:.3f} is worse than the champion's {old:.3f} by more than {tolerance:g}")
    gain = _mean(candidate, config) - _mean(champion, config)
    names = ", ".join(config.primary)
    if gain < config.minimum_gain:
        failures.append(f"mean of {names} gains {gain:+.3f}; the rule requires {config.minimum_gain:+.3f}")
    if failures:
        return Decision(promoted=False, reasons=tuple(failures))
    return Decision(promoted=True, reasons=(f"mean of {names} gains {gain:+.3f} and no score regresses",))


def _mean(scores: Mapping[str, float], config: PromotionConfig) -> float:
    signs = [-1.0 if name in config.lower_is_better else 1.0 for name in config.primary]
    values = [scores.get(name, math.nan) for name in config.primary]
    known = [sign * (value if math.isfinite(value) else 0.0) for sign, value in zip(signs, values, strict=True)]
    return sum(known) / len(known)
