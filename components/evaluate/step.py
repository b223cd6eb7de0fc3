"""The evaluate step: LPM-Bench on held-out people, every figure between its two anchors."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluate.cases.build import build_bench
from components.evaluate.cases.cases import NOTE, Array, Bench, Case
from components.evaluate.config import EvaluateConfig, EvaluateReport
from components.evaluate.metrics.anchored import Anchored, anchored, normalise
from components.evaluate.metrics.drift import COLLAPSE_PEAK, DriftReport, drift_report, edges
from components.evaluate.metrics.identity import IdentityScores, identity_scores
from components.evaluate.metrics.instruments import Instruments, Reading, check_instruments, fit_instruments
from components.evaluate.metrics.listening import ListeningScores, listening_scores
from components.evaluate.metrics.probes import GOOD_PROBE
from components.evaluate.metrics.quality import frechet, psnr_db, ssim
from components.evaluate.metrics.speed import SpeedReport, speed_report
from components.evaluate.metrics.sync import SyncScores, sync_scores
from components.evaluate.model_outputs import Generated, generate_base, generate_online, round_trip
from components.evaluate.report.page import CaseView, write_report
from lpm_model.files import staged
from lpm_model.progress import Progress
from serving.drift import cosine_distance, laplacian_energy, mean_lab
from serving.talk import OnlineLPM

log = logging.getLogger(__name__)

SCORED_SIGNALS = ("jaw_open", "smile", "pitch")
"""Signals on which a score rests; a weak reading of another one limits nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Yardstick:
    """All that does not depend on the model; lists run over the cases, the long conversation is last."""

    cases: list[Case]
    """Scored cases and the long conversation."""
    instruments: Instruments
    """Fitted on other people."""
    passed: list[Array]
    """Truth through the autoencoder, uint8 [T, H, W, 3]."""
    on_truth: list[Reading]
    """Readings of the truth."""
    on_passed: list[Reading]
    """Readings of the truth through the autoencoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What the model made of the cases."""

    videos: list[Generated]
    """One for each case, the long conversation last."""
    readings: list[Reading]
    """What the instruments read from them."""


def evaluate(model: Path, base: Path, report: Path, config: EvaluateConfig, progress: Progress) -> EvaluateReport:
    """Measure an Online LPM and write the report folder.

    Args:
        model: folder of the Online LPM.
        base: folder of the Base LPM it comes from.
        report: folder to write: report.json, report.html, videos/, talk.mp4.
        config: what to measure.
        progress: shows how far it is.

    Raises:
        ValueError: a model folder that cannot be read.
    """
    from lpm_model.autoencoder.load import load_autoencoder
    from lpm_model.online import load_online

    clock = Clock()
    online: OnlineLPM = load_online(model)
    autoencoder = load_autoencoder(model / "autoencoder")
    with clock.part("bench"):
        bench = build_bench(Path(config.cache), dataclasses.replace(config.bench, size_px=online.size_px), progress)
    yardstick = make_yardstick(autoencoder, bench, clock, progress)
    played = play(online, yardstick, config.seed, clock, progress)
    base_speed = _run_base(base, bench, config, clock, progress)
    with clock.part("measure"):
        result = measure(yardstick, played, bench, config, online.chunk_samples // 1000, base_speed)
    with clock.part("report"), staged(report) as work:
        result = dataclasses.replace(result, seconds=clock.seconds)
        views = [_view(yardstick, played, i) for i in range(len(yardstick.cases))]
        write_report(work, result, views[:-1], views[-1], progress.track)
    log.info("evaluated %s: %s", model, result.scores)
    return result


class Clock:
    """Time that each part takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 2)


def make_yardstick(autoencoder: Any, bench: Bench, clock: Clock, progress: Progress) -> Yardstick:
    """Pass truth through the autoencoder, fit the instruments on other people and read the truth with them."""
    cases = [*bench.cases, bench.talk]
    with clock.part("instruments"):
        clips = progress.track(bench.probes, "probe people through the autoencoder")
        instruments = fit_instruments(
            bench.probes, [np.concatenate([c.frames[:1], round_trip(autoencoder, c.frames)]) for c in clips]
        )
    with clock.part("autoencoder"):
        opened = progress.track(cases, "truth through the autoencoder")
        passed = [round_trip(autoencoder, np.concatenate([c.image[None], c.frames])) for c in opened]
    with clock.part("read_truth"):
        videos = [*[c.frames for c in cases], *passed]
        readings = [instruments.read(v) for v in progress.track(videos, "read truth")]
    count = len(cases)
    return Yardstick(
        cases=cases, instruments=instruments, passed=passed, on_truth=readings[:count], on_passed=readings[count:]
    )


def play(online: OnlineLPM, yardstick: Yardstick, seed: int, clock: Clock, progress: Progress) -> Played:
    """Let the model play all cases and read what it made."""
    with clock.part("generate"):
        videos = [generate_online(online, c, seed) for c in progress.track(yardstick.cases, "generate")]
    with clock.part("read_generated"):
        readings = [yardstick.instruments.read(g.video) for g in progress.track(videos, "read generated")]
    return Played(videos=videos, readings=readings)


def _run_base(base: Path, bench: Bench, config: EvaluateConfig, clock: Clock, progress: Progress) -> SpeedReport | None:
    """Time Base LPM on the beginning of a few cases."""
    if not config.base_cases:
        return None
    from lpm_model.sampler import load_base

    with clock.part("base"):
        loaded = load_base(base)
        cases = progress.track(bench.cases[: config.base_cases], "base")
        made = [generate_base(loaded, case, config) for case in cases]
    seconds = [s for g in made for s in g.step_seconds]
    return speed_report(seconds, len(made[0].video))


def measure(
    yardstick: Yardstick,
    played: Played,
    bench: Bench,
    config: EvaluateConfig,
    chunk_frames: int,
    base_speed: SpeedReport | None,
) -> EvaluateReport:
    """All figures from all readings."""
    count = len(bench.cases)
    groups, truths = [c.group for c in bench.cases], [c.truth for c in bench.cases]
    on_truth, on_passed, on_generated = (
        readings[:count] for readings in (yardstick.on_truth, yardstick.on_passed, played.readings)
    )
    jaws = [[r.signals["jaw_open"] for r in readings] for readings in (on_generated, on_passed)]
    sync = sync_scores(jaws[0], jaws[1], truths, groups)
    listening = listening_scores([r.reaction for r in on_generated], [r.reaction for r in on_passed], truths, groups)
    embedded = [[r.embeddings for r in readings] for readings in (on_generated, on_passed, on_truth)]
    identity = identity_scores(embedded[0], embedded[1], embedded[2], groups)
    fidelity = _fidelity(on_generated, on_passed, on_truth, groups)
    drift = {
        name: drift_report(video, reading.embeddings, reading.features, chunk_frames)
        for name, video, reading in (
            ("generated", played.videos[-1].video, played.readings[-1]),
            ("truth", yardstick.passed[-1], yardstick.on_passed[-1]),
        )
    }
    steps = [s for g in played.videos for s in g.step_seconds]
    speed = speed_report(steps, chunk_frames)
    parts = _parts(sync, listening, identity, fidelity)
    probes = {"signals": check_instruments(bench.cases, on_truth, on_passed)} | _identity_check(embedded, groups)
    quality = _quality(yardstick, played, count)
    steadiness = _steadiness(yardstick, drift["generated"], drift["truth"])
    scores: dict[str, float | None] = {name: parts[name].score for name in ("sync", "mouth_rest", "identity")}
    scores |= {"listening": listening.score, "identity_similarity": identity.similarity.score}
    scores |= {"identity_share": identity.nearest.value, "fidelity": fidelity.score, "drift": steadiness}
    scores |= {"psnr_db": quality["autoencoder_psnr_db"], "speed": speed.seconds_per_video_second}
    figures: dict[str, Any] = dict(
        scores=scores,
        intervals={name: (part.low, part.high) for name, part in parts.items()},
        anchors={n: {"value": p.value, "truth": p.truth, "shuffled": p.shuffled} for n, p in parts.items()},
        per_case=_per_case(bench, parts, sync),
        probes=probes,
        quality=quality,
        drift={name: dataclasses.asdict(found) for name, found in drift.items()},
        speed={"online": dataclasses.asdict(speed), "base": dataclasses.asdict(base_speed) if base_speed else None},
        bench=_describe(bench, config),
        seconds={},
        notes=_notes(probes, scores, drift["generated"], drift["truth"]),
        paths={"report": "report.html", "talk": "talk.mp4", "videos": "videos"},
    )
    return EvaluateReport(**finite(figures))


def finite(value: Any) -> Any:
    """The same nested value with None where a number is not finite: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(finite(item) for item in value)
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _parts(
    sync: SyncScores, listening: ListeningScores, identity: IdentityScores, fidelity: Anchored
) -> dict[str, Anchored]:
    """Every anchored metric by its name in the report."""
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


def _fidelity(generated: list[Reading], passed: list[Reading], truth: list[Reading], groups: list[str]) -> Anchored:
    """Frechet distance of picture features to the truth, negated so that more is better."""
    return anchored(
        np.array([[-frechet(g.features, t.features) for t in truth] for g in generated]),
        np.array([-frechet(p.features, t.features) for p, t in zip(passed, truth, strict=True)]),
        groups,
    )


def _identity_check(embedded: list[list[Array]], groups: list[str]) -> dict[str, Any]:
    """How well the embedding knows people on truth: the second half of each clip against centres of the first."""
    halves = [(e[: len(e) // 2], e[len(e) // 2 :]) for e in embedded[2]]
    first, second = [a for a, _ in halves], [b for _, b in halves]
    on_truth = identity_scores(second, second, first, groups).nearest.value
    return {
        "identity_on_truth": on_truth,
        "identity_through_autoencoder": identity_scores(embedded[1], embedded[1], embedded[2], groups).nearest.value,
    }


def _quality(yardstick: Yardstick, played: Played, count: int) -> dict[str, float | None]:
    """Picture quality of the autoencoder and of generated frames."""
    truth = np.concatenate([c.frames for c in yardstick.cases[:count]])
    passed = np.concatenate(yardstick.passed[:count])
    made = np.concatenate([g.video for g in played.videos[:count]])
    sharp = [float(laplacian_energy(v[::6]).mean()) for v in (made, passed, truth)]
    pairs = zip(played.videos[:count], yardstick.cases[:count], strict=True)
    colour = float(
        np.mean([np.linalg.norm(mean_lab(g.video[::6]) - mean_lab(c.frames[::6]), axis=1) for g, c in pairs])
    )
    return {
        "autoencoder_psnr_db": psnr_db(passed, truth),
        "autoencoder_ssim": ssim(passed[::6], truth[::6]),
        "sharpness_ratio": sharp[0] / sharp[2],
        "autoencoder_sharpness_ratio": sharp[1] / sharp[2],
        "colour_de_to_truth": colour,
    }


def _steadiness(yardstick: Yardstick, generated: DriftReport, truth: DriftReport) -> float | None:
    """Drift between its anchors: 1 is the truth's own change, 0 is the difference to another person."""
    last = edges(yardstick.on_passed[-1].embeddings)[1]
    colour = edges(mean_lab(yardstick.passed[-1]))[1].mean(0)
    others = range(len(yardstick.cases) - 1)
    far_identity = float(np.mean([cosine_distance(last, yardstick.on_passed[i].embeddings) for i in others]))
    far_colour = float(np.mean([np.linalg.norm(colour - mean_lab(yardstick.passed[i]).mean(0)) for i in others]))
    placed = [
        normalise(generated.identity, truth.identity, far_identity),
        normalise(generated.colour_de, truth.colour_de, far_colour),
    ]
    valid = [p for p in placed if p is not None]
    return float(np.mean(valid)) if valid else None


def _per_case(bench: Bench, parts: dict[str, Anchored], sync: SyncScores) -> list[dict[str, Any]]:
    return [
        {"name": case.name, "person": case.person, "text": case.text}
        | {name: part.per_case[i] for name, part in parts.items()}
        | {"sync_best": sync.best[i], "sync_lag_frames": sync.lags[i]}
        for i, case in enumerate(bench.cases)
    ]


def _describe(bench: Bench, config: EvaluateConfig) -> dict[str, Any]:
    return {
        "digest": bench.digest,
        "note": NOTE,
        "cases": len(bench.cases),
        "people": [c.person for c in bench.cases],
        "seconds": config.bench.seconds,
        "talk_seconds": config.bench.talk_seconds,
        "probe_people": len(bench.probes),
    }


def _notes(
    probes: dict[str, Any], scores: dict[str, float | None], drift: DriftReport, truth: DriftReport
) -> list[str]:
    """What a reader must know before trusting the figures."""
    notes = []
    for name in SCORED_SIGNALS:
        found = probes["signals"][name]
        sharp, through = found["correlation_on_truth"], found["correlation_through_autoencoder"]
        if not found["good"]:
            notes.append(
                f"Weak instrument: the {name} probe reads held-out truth with correlation {sharp:.2f} "
                "(under 0.9), so what is measured with it is uncertain."
            )
        elif through < GOOD_PROBE:
            notes.append(
                f"The autoencoder hides part of {name}: the probe reads held-out truth with correlation {sharp:.2f}, "
                f"and with {through:.2f} after the autoencoder. Anchor 1 is what the autoencoder lets through."
            )
    notes += [
        f"No {name} score: its anchors nearly coincide on this set." for name, value in scores.items() if value is None
    ]
    if drift.freeze_rate > truth.freeze_rate:
        notes.append(f"The picture stands still in {drift.freeze_rate:.0%} of the long conversation's 2 s windows.")
    if drift.sink_collapse and drift.sink_peak > truth.sink_peak + 0.2:
        notes.append(f"The long conversation keeps returning to its first picture (peak over {COLLAPSE_PEAK}).")
    return notes


def _view(yardstick: Yardstick, played: Played, index: int) -> CaseView:
    case, made = yardstick.cases[index], played.readings[index]
    truth = case.truth
    step = played.videos[index].step_seconds
    return CaseView(
        case=case,
        generated=played.videos[index].video,
        passed=yardstick.passed[index],
        curves=[
            ("Mouth opening", centred(truth.jaw_open), made.signals["jaw_open"]),
            ("Head pitch", centred(truth.pitch), made.signals["pitch"]),
            ("Smile", centred(truth.smile), made.signals["smile"]),
            ("Likeness to the person (cosine)", *_likeness(yardstick.on_truth[index], made)),
        ],
        facts={"person": str(case.person), "median step": f"{1000 * float(np.median(step)):.0f} ms"},
    )


def centred(signal: Array) -> Array:
    """A truth signal as the probes see it: relative to its mean."""
    out: Array = signal - signal.mean()
    return out


def _likeness(truth: Reading, generated: Reading) -> tuple[Array, Array]:
    """Cosine to the person's true centre over time, of the truth and of the generated video."""
    centre = truth.embeddings.mean(0)
    centre = centre / np.linalg.norm(centre)
    return truth.embeddings @ centre, generated.embeddings @ centre
