"""Scores of LPM-Bench: every metric between its anchors, the quality figures around them, and the report."""

import dataclasses
from typing import Any

import numpy as np

from components.evaluate.baseline import Baseline
from components.evaluate.cases.cases import NOTE, Array, Bench
from components.evaluate.config import EvaluateConfig, EvaluateReport
from components.evaluate.metrics.anchored import Anchored, anchored, normalise
from components.evaluate.metrics.identity import IdentityScores, identity_scores
from components.evaluate.metrics.listening import ListeningScores, listening_scores
from components.evaluate.metrics.probe_set import Measurement, check_probes
from components.evaluate.metrics.quality import frechet, psnr_db, ssim
from components.evaluate.metrics.speed import SpeedReport, speed_report
from components.evaluate.metrics.stability import DriftReport, drift_report, edges
from components.evaluate.metrics.sync import SyncScores, sync_scores
from components.evaluate.model_outputs import ModelOutputs
from components.evaluate.report.notes import notes
from serving.drift import cosine_distance, laplacian_energy, mean_lab

SUBSAMPLE = 6
"""Interval in frames at which SSIM, sharpness and colour are measured."""


def score(
    baseline: Baseline,
    outputs: ModelOutputs,
    bench: Bench,
    config: EvaluateConfig,
    chunk_frames: int,
    base_speed: SpeedReport | None,
) -> EvaluateReport:
    """Compute all scores and figures from the measurements.

    Args:
        baseline: ground truth, its reconstruction, and their measurements.
        outputs: generated videos and their measurements.
        bench: the benchmark set.
        config: settings of the step.
        chunk_frames: frames that the Online LPM generates per step.
        base_speed: speed of the Base LPM; None if it was not run.
    """
    count = len(bench.cases)
    groups, ground_truths = [c.group for c in bench.cases], [c.ground_truth for c in bench.cases]
    generated, reconstructed = outputs.measurements[:count], baseline.reconstructed_measurements[:count]
    ground_truth = baseline.ground_truth_measurements[:count]
    jaws = [[m.signals["jaw_open"] for m in measurements] for measurements in (generated, reconstructed)]
    sync = sync_scores(jaws[0], jaws[1], ground_truths, groups)
    listening = listening_scores(
        [m.reaction for m in generated], [m.reaction for m in reconstructed], ground_truths, groups
    )
    embedded = [[m.embeddings for m in measurements] for measurements in (generated, reconstructed, ground_truth)]
    identity = identity_scores(embedded[0], embedded[1], embedded[2], groups)
    fidelity = _fidelity(generated, reconstructed, ground_truth, groups)
    drift = _drift(baseline, outputs, chunk_frames)
    speed = speed_report([s for g in outputs.videos for s in g.step_seconds], chunk_frames)
    metrics = _metrics(sync, listening, identity, fidelity)
    probes = {"signals": check_probes(bench.cases, ground_truth, reconstructed)} | _identity_check(embedded, groups)
    quality = _quality(baseline, outputs, count)
    scores: dict[str, float | None] = {name: metrics[name].score for name in ("sync", "mouth_rest", "identity")}
    scores |= {"listening": listening.score, "identity_similarity": identity.similarity.score}
    scores |= {"identity_share": identity.nearest.value, "fidelity": fidelity.score}
    scores |= {"drift": _stability(baseline, drift["generated"], drift["ground_truth"])}
    scores |= {"psnr_db": quality["autoencoder_psnr_db"], "speed": speed.seconds_per_video_second}
    figures: dict[str, Any] = dict(
        scores=scores,
        intervals={name: (metric.low, metric.high) for name, metric in metrics.items()},
        anchors={
            name: {"value": m.value, "ground_truth": m.ground_truth, "shuffled": m.shuffled}
            for name, m in metrics.items()
        },
        per_case=_per_case(bench, metrics, sync),
        probes=probes,
        quality=quality,
        drift={name: dataclasses.asdict(found) for name, found in drift.items()},
        speed={"online": dataclasses.asdict(speed), "base": dataclasses.asdict(base_speed) if base_speed else None},
        bench=_describe(bench, config),
        seconds={},
        notes=notes(probes, scores, drift["generated"], drift["ground_truth"]),
        paths={"report": "report.html", "talk": "talk.mp4", "videos": "videos"},
    )
    return EvaluateReport(**finite(figures))


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None in nested values, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(finite(item) for item in value)
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _metrics(
    sync: SyncScores, listening: ListeningScores, identity: IdentityScores, fidelity: Anchored
) -> dict[str, Anchored]:
    """Return every anchored metric by its name in the report."""
    return {
        "sync": sync.mouth,
        "mouth_rest": sync.rest,
        "listening_nod": listening.nod,
        "listening_smile": listening.smile,
        "listening_pause_lift": listening.lift,
        "identity": identity.nearest,
        "identity_similarity": identity.similarity,
        "fidelity": fidelity,
    }


def _fidelity(
    generated: list[Measurement], reconstructed: list[Measurement], ground_truth: list[Measurement], groups: list[str]
) -> Anchored:
    """Score the Frechet distance of image features to the ground truth, negated so that higher is better."""
    return anchored(
        np.array([[-frechet(g.features, t.features) for t in ground_truth] for g in generated]),
        np.array([-frechet(r.features, t.features) for r, t in zip(reconstructed, ground_truth, strict=True)]),
        groups,
    )


def _drift(baseline: Baseline, outputs: ModelOutputs, chunk_frames: int) -> dict[str, DriftReport]:
    """Measure drift over the long conversation, of the generated video and of the reconstructed ground truth."""
    return {
        name: drift_report(video, measurement.embeddings, measurement.features, chunk_frames)
        for name, video, measurement in (
            ("generated", outputs.videos[-1].video, outputs.measurements[-1]),
            ("ground_truth", baseline.reconstructed[-1], baseline.reconstructed_measurements[-1]),
        )
    }


def _identity_check(embedded: list[list[Array]], groups: list[str]) -> dict[str, Any]:
    """Check the identity embedding on ground truth: the second half of each clip against the centres of the first."""
    halves = [(e[: len(e) // 2], e[len(e) // 2 :]) for e in embedded[2]]
    first, second = [a for a, _ in halves], [b for _, b in halves]
    return {
        "identity_on_ground_truth": identity_scores(second, second, first, groups).nearest.value,
        "identity_through_autoencoder": identity_scores(embedded[1], embedded[1], embedded[2], groups).nearest.value,
    }


def _quality(baseline: Baseline, outputs: ModelOutputs, count: int) -> dict[str, float | None]:
    """Measure the image quality of the autoencoder and of generated frames."""
    ground_truth = np.concatenate([c.frames for c in baseline.cases[:count]])
    reconstructed = np.concatenate(baseline.reconstructed[:count])
    generated = np.concatenate([g.video for g in outputs.videos[:count]])
    sharp = [float(laplacian_energy(v[::SUBSAMPLE]).mean()) for v in (generated, reconstructed, ground_truth)]
    pairs = zip(outputs.videos[:count], baseline.cases[:count], strict=True)
    colour = float(
        np.mean(
            [np.linalg.norm(mean_lab(g.video[::SUBSAMPLE]) - mean_lab(c.frames[::SUBSAMPLE]), axis=1) for g, c in pairs]
        )
    )
    return {
        "autoencoder_psnr_db": psnr_db(reconstructed, ground_truth),
        "autoencoder_ssim": ssim(reconstructed[::SUBSAMPLE], ground_truth[::SUBSAMPLE]),
        "sharpness_ratio": sharp[0] / sharp[2],
        "autoencoder_sharpness_ratio": sharp[1] / sharp[2],
        "colour_de_to_ground_truth": colour,
    }


def _stability(baseline: Baseline, generated: DriftReport, ground_truth: DriftReport) -> float | None:
    """Score drift between its anchors: 1 is the change of the ground truth, 0 the distance to another person."""
    last = edges(baseline.reconstructed_measurements[-1].embeddings)[1]
    colour = edges(mean_lab(baseline.reconstructed[-1]))[1].mean(0)
    others = range(len(baseline.cases) - 1)
    other_identity = float(
        np.mean([cosine_distance(last, baseline.reconstructed_measurements[i].embeddings) for i in others])
    )
    other_colour = float(
        np.mean([np.linalg.norm(colour - mean_lab(baseline.reconstructed[i]).mean(0)) for i in others])
    )
    placed = [
        normalise(generated.identity, ground_truth.identity, other_identity),
        normalise(generated.colour_de, ground_truth.colour_de, other_colour),
    ]
    valid = [p for p in placed if p is not None]
    return float(np.mean(valid)) if valid else None


def _per_case(bench: Bench, metrics: dict[str, Anchored], sync: SyncScores) -> list[dict[str, Any]]:
    """Return the raw metric values of every case."""
    return [
        {"name": case.name, "person": case.person, "text": case.text}
        | {name: metric.per_case[i] for name, metric in metrics.items()}
        | {"sync_best": sync.best[i], "sync_lag_frames": sync.lags[i]}
        for i, case in enumerate(bench.cases)
    ]


def _describe(bench: Bench, config: EvaluateConfig) -> dict[str, Any]:
    """Describe the benchmark set for the report."""
    return {
        "digest": bench.digest,
        "note": NOTE,
        "cases": len(bench.cases),
        "people": [c.person for c in bench.cases],
        "seconds": config.bench.seconds,
        "talk_seconds": config.bench.talk_seconds,
        "probe_people": len(bench.probes),
    }
