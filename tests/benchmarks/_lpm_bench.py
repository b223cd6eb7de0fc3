"""LPM-Bench for benchmarks that compare several models on the same held-out cases; the baseline is computed once."""

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from components.evaluate.baseline import Baseline, make_baseline
from components.evaluate.cases.build import build_bench
from components.evaluate.cases.cases import Bench
from components.evaluate.config import BenchConfig, EvaluateConfig
from components.evaluate.metrics.listening import listening_scores
from components.evaluate.metrics.sync import sync_scores
from components.evaluate.model_outputs import generate_base, run_online
from components.evaluate.scores import score
from components.evaluate.timing import Stopwatch
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.online import load_online
from lpm_model.progress import Progress
from lpm_model.sampler import load_base

SCORES = ("sync", "listening", "identity", "drift")
"""Scores reported for every model."""
LATEST = Path("runs/latest")
"""Folder of the last run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One model on the held-out cases."""

    scores: dict[str, float | None]
    seconds_per_video_second: float
    """Compute time per second of video."""


class LpmBench:
    """Held-out cases and the probes that measure them.

    Args:
        model: a folder with the autoencoder that reconstructs the ground truth.
        config: cases, and the sampling settings of Base.
        progress: progress bar.
    """

    def __init__(self, model: Path, config: EvaluateConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.bench: Bench = build_bench(Path(config.cache), config.bench, progress)
        autoencoder = load_autoencoder(model / "autoencoder")
        self.baseline: Baseline = make_baseline(autoencoder, self.bench, Stopwatch(), progress)

    def online(self, folder: Path, seed: int = 0) -> Measured:
        """Generate every case with an Online LPM and score it."""
        model = load_online(folder)
        outputs = run_online(model, self.baseline, seed, Stopwatch(), self.progress)
        report = score(self.baseline, outputs, self.bench, self.config, model.chunk_samples // 1000, None)
        found = {name: report.scores[name] for name in SCORES}
        return Measured(scores=found, seconds_per_video_second=report.speed["online"]["seconds_per_video_second"])

    def base(self, folder: Path) -> Measured:
        """Generate the scored cases with a Base LPM; its scores are sync and listening."""
        model, cases = load_base(folder), self.bench.cases
        generated = [generate_base(model, case, self.config) for case in self.progress.track(cases, "Base")]
        tracked = self.progress.track(generated, "measure Base")
        measured = [self.baseline.probes.measure(one.video) for one in tracked]
        reconstructed, ground_truths = (
            self.baseline.reconstructed_measurements[: len(cases)],
            [case.ground_truth for case in cases],
        )
        groups = [case.group for case in cases]
        sync = sync_scores(
            [r.signals["jaw_open"] for r in measured],
            [r.signals["jaw_open"] for r in reconstructed],
            ground_truths,
            groups,
        )
        listening = listening_scores(
            [r.reaction for r in measured], [r.reaction for r in reconstructed], ground_truths, groups
        )
        seconds = sum(sum(one.step_seconds) for one in generated)
        return Measured(
            scores={"sync": sync.mouth.score, "listening": listening.score},
            seconds_per_video_second=seconds / (len(cases) * self.config.bench.seconds),
        )


def settings(
    size_px: int, *, conversations: int, seconds: int, talk_seconds: int, cache: Path, base_steps: int = 30,
    guidance: float = 2.0, seed: int = 0,
) -> EvaluateConfig:  # fmt: skip
    """Settings of a comparison; Base generates whole cases."""
    bench = BenchConfig(conversations=conversations, seconds=seconds, talk_seconds=talk_seconds, size_px=size_px)
    return EvaluateConfig(
        bench=replace(bench, seed=seed), cache=str(cache), base_seconds=seconds, base_steps=base_steps,
        base_guidance=guidance,
    )  # fmt: skip


def quiet() -> None:
    """Silence Lightning and torch; warnings about a collapsing stage are still printed."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Mismatch dtype")
