"""The decision by thresholds: which scores reject a clip.

A score is compared with the fields `min_<score>` and `max_<score>` of `config.Thresholds`. A blurred clip, for example,
is dropped by `min_sharpness`: the scorer `Person` (scorers/people.py) measures the column `sharpness`, the profile in
config.py sets `min_sharpness`, and `reject_reasons` returns "sharpness_below_min".
"""

from collections.abc import Mapping

from components.curate.config import Thresholds


def reject_reasons(scores: Mapping[str, float | None], thresholds: Thresholds) -> list[str]:
    """Return the reasons to drop a clip, such as "sharpness_below_min", in the order of its scores.

    Args:
        scores: value by column; None (not measurable) rejects nothing.
        thresholds: limits by column; a limit of None is switched off.
    """
    reasons = []
    for name, value in scores.items():
        minimum = getattr(thresholds, f"min_{name}", None)
        maximum = getattr(thresholds, f"max_{name}", None)
        if value is None:
            continue
        if minimum is not None and value < minimum:
            reasons.append(f"{name}_below_min")
        if maximum is not None and value > maximum:
            reasons.append(f"{name}_above_max")
    return reasons
