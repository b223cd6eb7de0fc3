"""LPM-Bench for benchmarks that compare several models on the same held-out cases: its yardstick is made once."""

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from components.evaluate.cases.build import build_bench
from components.evaluate.cases.cases import Bench
from components.evaluate.config import BenchConfig, EvaluateConfig
from components.evaluate.metrics.listening import listening_scores
from components.evaluate.metrics.sync import sync_scores
from components.evaluate.model_outputs import generate_base
from components.evaluate.step import Clock, Yardstick, make_yardstick, measure, play
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.online import load_online
from lpm_model.progress import Progress
from lpm_model.sampler import load_base

SCORES = ("sync", "listening", "identity", "drift")
"""What is told of every model."""
LATEST = Path("runs/latest")
"""Folder of the last run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One model on the held-out cases."""

    scores: dict[str, float | None]
    seconds_per_video_second: float
    """Computing time."""


class LpmBench:
    """Held-out cases and the instruments that read them.

    Args:
        model: a folder whose autoencoder the truth is passed through.
        config: cases, and what Base is played with.
        progress: shows how far it is.
    """

    def __init__(self, model: Path, config: EvaluateConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.bench: Bench = build_bench(Path(config.cache), config.bench, progress)
        autoencoder = load_autoencoder(model / "autoencoder")
        self.yardstick: Yardstick = make_yardstick(autoencoder, self.bench, Clock(), progress)

    def online(self, folder: Path, seed: int = 0) -> Measured:
        """Play every case with an Online LPM."""
        model = load_online(folder)
        played = play(model, self.yardstick, seed, Clock(), self.progress)
        report = measure(self.yardstick, played, self.bench, self.config, model.chunk_samples // 1000, None)
        found = {name: report.scores[name] for name in SCORES}
        return Measured(scores=found, seconds_per_video_second=report.speed["online"]["seconds_per_video_second"])

    def base(self, folder: Path) -> Measured:
        """Play the scored cases with a Base LPM; its scores are sync and listening."""
        model, cases = load_base(folder), self.bench.cases
        made = [generate_base(model, case, self.config) for case in self.progress.track(cases, "Base")]
        opened = self.progress.track(made, "read Base")
        read = [self.yardstick.instruments.read(generated.video) for generated in opened]
        passed, truths = self.yardstick.on_passed[: len(cases)], [case.truth for case in cases]
        groups = [case.group for case in cases]
        sync = sync_scores(
            [r.signals["jaw_open"] for r in read], [r.signals["jaw_open"] for r in passed], truths, groups
        )
        listening = listening_scores([r.reaction for r in read], [r.reaction for r in passed], truths, groups)
        seconds = sum(sum(generated.step_seconds) for generated in made)
        return Measured(
            scores={"sync": sync.mouth.score, "listening": listening.score},
            seconds_per_video_second=seconds / (len(cases) * self.config.bench.seconds),
        )


def settings(
    size_px: int, *, conversations: int, seconds: int, talk_seconds: int, cache: Path, base_steps: int = 30,
    guidance: float = 2.0, seed: int = 0,
) -> EvaluateConfig:  # fmt: skip
    """Of a comparison; Base plays whole cases."""
    bench = BenchConfig(conversations=conversations, seconds=seconds, talk_seconds=talk_seconds, size_px=size_px)
    return EvaluateConfig(
        bench=replace(bench, seed=seed), cache=str(cache), base_seconds=seconds, base_steps=base_steps,
        base_guidance=guidance,
    )  # fmt: skip


def quiet() -> None:
    """Keep Lightning's and torch's talk out of the table; a stage that collapses is still told."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Mismatch dtype")
