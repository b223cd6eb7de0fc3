"""The one decision by thresholds: which scores reject a clip."""

from collections.abc import Mapping

from components.curate.config import Thresholds


def decide(scores: Mapping[str, float | None], thresholds: Thresholds) -> list[str]:
    """Every score that misses its threshold as a reason ("sharpness_below_min"), in the scores' order."""
    reasons = []
    for name, value in scores.items():
        low = getattr(thresholds, f"min_{name}", None)
        high = getattr(thresholds, f"max_{name}", None)
        if value is None:
            continue
        if low is not None and value < low:
            reasons.append(f"{name}_below_min")
        if high is not None and value > high:
            reasons.append(f"{name}_above_max")
    return reasons
