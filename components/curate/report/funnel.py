"""The funnel: what entered and left each stage, and why."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of the funnel; entered = left + all reasons."""

    stage: str
    """Name of the stage."""
    unit: str
    """What is counted: source, track, frame or clip."""
    entered: int
    """How many came in."""
    left: int
    """How many went on."""
    reasons: dict[str, int]
    """How many were dropped, by reason."""

    def __post_init__(self) -> None:
        if self.entered != self.left + sum(self.reasons.values()):
            raise AssertionError(f"funnel stage {self.stage} does not add up: {self}")

    def as_dict(self) -> dict[str, object]:
        """The form written to curation.json, with the keys `in` and `out`."""
        return {
            "stage": self.stage,
            "unit": self.unit,
            "in": self.entered,
            "out": self.left,
            "reasons": dict(sorted(self.reasons.items())),
        }


def stage(name: str, unit: str, entered: int, reasons: Iterable[str] | Counter[str]) -> Stage:
    """A stage from how many came in and the reason of each (or the count of each reason) that was dropped."""
    counted = {reason: count for reason, count in Counter(reasons).items() if count}
    return Stage(stage=name, unit=unit, entered=entered, left=entered - sum(counted.values()), reasons=counted)


def as_text(stages: Iterable[Stage]) -> str:
    """The funnel in lines for messages."""
    lines = []
    for item in stages:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(item.reasons.items()))
        lines.append(f"{item.stage}: {item.entered} -> {item.left} {item.unit}s" + (f" ({reasons})" if reasons else ""))
    return "\n".join(lines)


def check(stages: list[Stage], kept_s: float, source_s: float, bounds: tuple[float, float]) -> None:
    """Stop a run that keeps nothing or a suspicious share.

    Raises:
        ValueError: with the whole funnel, so that the reader sees where everything went.
    """
    if kept_s <= 0:
        raise ValueError(f"no clip is left; see where they went:\n{as_text(stages)}")
    retention = kept_s / source_s
    if not bounds[0] <= retention <= bounds[1]:
        raise ValueError(
            f"{kept_s:.1f} of {source_s:.1f} source seconds are left, a share of {retention:.3f} outside "
            f"{bounds[0]:g}..{bounds[1]:g}: check the sources or set min_retention / max_retention\n{as_text(stages)}"
        )
