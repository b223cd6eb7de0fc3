"""The evaluate step: LPM-Bench on held-out people.

1. render or load the benchmark set; 2. fit the probes and measure the ground truth; 3. generate every case with the
Online LPM; 4. time the Base LPM; 5. compute scores between their anchors; 6. write the report folder.
"""

import dataclasses
import logging
from pathlib import Path

from components.evaluate.baseline import make_baseline
from components.evaluate.cases.build import build_bench
from components.evaluate.cases.cases import Bench
from components.evaluate.config import EvaluateConfig, EvaluateReport
from components.evaluate.metrics.speed import SpeedReport, speed_report
from components.evaluate.model_outputs import generate_base, run_online
from components.evaluate.report.page import write_report
from components.evaluate.report.views import case_view
from components.evaluate.scores import score
from components.evaluate.timing import Stopwatch
from lpm_model.config import SAMPLES_PER_FRAME
from lpm_model.files import staged
from lpm_model.progress import Progress
from serving.talk import OnlineLPM

log = logging.getLogger(__name__)


def evaluate(model: Path, base: Path, report: Path, config: EvaluateConfig, progress: Progress) -> EvaluateReport:
    """Evaluate an Online LPM and write the report folder.

    Args:
        model: folder of the Online LPM.
        base: folder of the Base LPM it was distilled from.
        report: folder to write: report.json, report.html, videos/, talk.mp4.
        config: what to measure.
        progress: progress bar.

    Raises:
        ValueError: a model folder cannot be read.
    """
    from lpm_model.autoencoder.load import load_autoencoder
    from lpm_model.online import load_online

    stopwatch = Stopwatch()
    online: OnlineLPM = load_online(model)
    autoencoder = load_autoencoder(model / "autoencoder")
    with stopwatch.part("bench"):
        bench = build_bench(Path(config.cache), dataclasses.replace(config.bench, size_px=online.size_px), progress)
    baseline = make_baseline(autoencoder, bench, stopwatch, progress)
    outputs = run_online(online, baseline, config.seed, stopwatch, progress)
    base_speed = _time_base(base, bench, config, stopwatch, progress)
    with stopwatch.part("score"):
        chunk_frames = online.chunk_samples // SAMPLES_PER_FRAME
        result = score(baseline, outputs, bench, config, chunk_frames, base_speed)
    with stopwatch.part("report"), staged(report) as work:
        result = dataclasses.replace(result, seconds=stopwatch.seconds)
        views = [
            case_view(*parts)
            for parts in zip(
                baseline.cases,
                [generated.video for generated in outputs.videos],
                baseline.reconstructed,
                baseline.ground_truth_measurements,
                outputs.measurements,
                [generated.step_seconds for generated in outputs.videos],
                strict=True,
            )
        ]
        write_report(work, result, views[:-1], views[-1], progress.track)
    log.info("evaluated %s: %s", model, result.scores)
    return result


def _time_base(
    base: Path, bench: Bench, config: EvaluateConfig, stopwatch: Stopwatch, progress: Progress
) -> SpeedReport | None:
    """Time the Base LPM on the beginning of a few cases; None if `base_cases` is 0."""
    if not config.base_cases:
        return None
    from lpm_model.sampler import load_base

    with stopwatch.part("base"):
        loaded = load_base(base)
        cases = progress.track(bench.cases[: config.base_cases], "base")
        generated = [generate_base(loaded, case, config) for case in cases]
    seconds = [s for g in generated for s in g.step_seconds]
    return speed_report(seconds, len(generated[0].video))
