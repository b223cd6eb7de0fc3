"""The funnel: how many items entered and passed each stage, and why the others were dropped."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of the funnel; entered = passed + sum(reasons)."""

    stage: str
    """Name of the stage."""
    unit: str
    """Counted item: source, track, frame or clip."""
    entered: int
    """Items that entered."""
    passed: int
    """Items that passed."""
    reasons: dict[str, int]
    """Dropped items by reason."""

    def __post_init__(self) -> None:
        if self.entered != self.passed + sum(self.reasons.values()):
            raise AssertionError(f"funnel stage {self.stage} does not add up: {self}")

    def as_dict(self) -> dict[str, object]:
        """Return the form written to curation.json, with the keys `in` and `out`."""
        return {
            "stage": self.stage,
            "unit": self.unit,
            "in": self.entered,
            "out": self.passed,
            "reasons": dict(sorted(self.reasons.items())),
        }


def stage(name: str, unit: str, entered: int, reasons: Iterable[str] | Counter[str]) -> Stage:
    """Make a stage from the number of entered items and the reasons (or counts by reason) of the dropped ones."""
    counted = {reason: count for reason, count in Counter(reasons).items() if count}
    return Stage(stage=name, unit=unit, entered=entered, passed=entered - sum(counted.values()), reasons=counted)


def as_text(stages: Iterable[Stage]) -> str:
    """Format the funnel as lines for messages."""
    lines = []
    for item in stages:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(item.reasons.items()))
        lines.append(
            f"{item.stage}: {item.entered} -> {item.passed} {item.unit}s" + (f" ({reasons})" if reasons else "")
        )
    return "\n".join(lines)


def check(stages: list[Stage], kept_s: float, source_s: float, bounds: tuple[float, float]) -> None:
    """Fail a run that keeps nothing or an implausible fraction.

    Raises:
        ValueError: with the whole funnel, which shows where clips were dropped.
    """
    if kept_s <= 0:
        raise ValueError(f"no clip is left; the funnel shows where they were dropped:\n{as_text(stages)}")
    retention = kept_s / source_s
    if not bounds[0] <= retention <= bounds[1]:
        raise ValueError(
            f"{kept_s:.1f} of {source_s:.1f} source seconds are left, a fraction of {retention:.3f} outside "
            f"{bounds[0]:g}..{bounds[1]:g}: check the sources or set min_retention / max_retention\n{as_text(stages)}"
        )
