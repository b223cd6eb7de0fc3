"""Notes of the report: limits that a reader must know before trusting the figures."""

from typing import Any

from components.evaluate.metrics.probes import MIN_PROBE_CORRELATION
from components.evaluate.metrics.stability import COLLAPSE_PEAK, DriftReport

SCORED_SIGNALS = ("jaw_open", "smile", "pitch")
"""Signals that scores depend on; a weak probe of any other signal affects no score."""


def notes(
    probes: dict[str, Any], scores: dict[str, float | None], generated: DriftReport, ground_truth: DriftReport
) -> list[str]:
    """List weak probes, missing scores, frozen frames and collapse.

    Args:
        probes: probe checks; "signals" is from `check_probes`.
        scores: the scores of the report.
        generated: drift of the generated long conversation.
        ground_truth: drift of its reconstructed ground truth.
    """
    found = [note for name in SCORED_SIGNALS if (note := _probe_note(name, probes["signals"][name]))]
    found += [
        f"No {name} score: its anchors nearly coincide on this set." for name, value in scores.items() if value is None
    ]
    if generated.freeze_rate > ground_truth.freeze_rate:
        found.append(f"The video is frozen in {generated.freeze_rate:.0%} of the long conversation's 2 s windows.")
    if generated.sink_collapse and generated.sink_peak > ground_truth.sink_peak + 0.2:
        found.append(f"The long conversation keeps returning to its first frames (peak over {COLLAPSE_PEAK}).")
    return found


def _probe_note(name: str, check: dict[str, Any]) -> str:
    """Describe a weak probe or a signal that the autoencoder degrades; "" if there is nothing to note."""
    direct, through = check["correlation_on_ground_truth"], check["correlation_through_autoencoder"]
    if not check["good"]:
        return (
            f"Weak probe: the {name} probe reaches a correlation of {direct:.2f} on held-out ground truth "
            f"(below {MIN_PROBE_CORRELATION}), so metrics based on it are uncertain."
        )
    if through < MIN_PROBE_CORRELATION:
        return (
            f"The autoencoder degrades {name}: the correlation of its probe on held-out ground truth drops from "
            f"{direct:.2f} to {through:.2f} after reconstruction. Anchor 1 is what the autoencoder preserves."
        )
    return ""
