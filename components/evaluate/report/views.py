"""One case on the report page: three videos and curves of ground truth against generated signals."""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import Array, Case
from components.evaluate.metrics.probe_set import Measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseView:
    """One case of the page."""

    case: Case
    """The case."""
    generated: Array
    """uint8 [T, H, W, 3]."""
    reconstructed: Array
    """uint8 [T, H, W, 3]: the ground truth through the autoencoder."""
    curves: list[tuple[str, Array, Array]]
    """Title, ground-truth and generated signal of each curve, float [T]."""
    facts: dict[str, str]
    """Details below the video."""


def case_view(
    case: Case,
    generated: Array,
    reconstructed: Array,
    ground_truth: Measurement,
    measured: Measurement,
    step_seconds: list[float],
) -> CaseView:
    """Collect the data that the page shows for one case.

    Args:
        case: the case.
        generated: its generated video, uint8 [T, H, W, 3].
        reconstructed: its ground truth through the autoencoder, uint8 [T, H, W, 3].
        ground_truth: measurement of the ground truth.
        measured: measurement of the generated video.
        step_seconds: time of every generation step.
    """
    signals = case.ground_truth
    return CaseView(
        case=case,
        generated=generated,
        reconstructed=reconstructed,
        curves=[
            ("Mouth opening", centred(signals.jaw_open), measured.signals["jaw_open"]),
            ("Head pitch", centred(signals.pitch), measured.signals["pitch"]),
            ("Smile", centred(signals.smile), measured.signals["smile"]),
            ("Identity similarity (cosine)", *_similarities(ground_truth, measured)),
        ],
        facts={
            "Person": str(case.person),
            "median step time": f"{1000 * float(np.median(step_seconds)):.0f} ms",
        },
    )


def centred(signal: Array) -> Array:
    """Subtract the mean from a ground-truth signal [T], as the probes do."""
    out: Array = signal - signal.mean()
    return out


def _similarities(ground_truth: Measurement, generated: Measurement) -> tuple[Array, Array]:
    """Return the cosine to the person's mean ground-truth embedding, [T] each, of ground truth and generated video."""
    centre = ground_truth.embeddings.mean(0)
    centre = centre / np.linalg.norm(centre)
    return ground_truth.embeddings @ centre, generated.embeddings @ centre
