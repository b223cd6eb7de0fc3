"""The benchmark set: held-out people who say held-out sentences to each other, with the truth of every frame.

Enters: a BenchConfig. Leaves: a cached folder of cases, one long conversation, and clips of yet other people on whom
the instruments are fitted. Nothing of it is ever trained on.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.common import StepProgress, read_json, staged, write_json
from components.evaluate.config import BenchConfig
from components.evaluate.metrics import Array
from lpm_model.config import SAMPLES_PER_FRAME, STATES, to_mapping
from lpm_model.digests import file_digest

IDLE, SPEAK, LISTEN = (STATES[name] for name in ("idle", "speak", "listen"))
"""Values of `Truth.state`."""
SIGNALS = ("jaw_open", "smile", "brow", "pitch")
"""Truth signals that the probes read."""
NOTE = "performer's held-out people and sentences"
"""What the benchmark set is, for the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What really happened on T frames."""

    jaw_open: Array
    """float [T]: 0 closed, 1 wide open."""
    smile: Array
    """float [T]: mean of both corners."""
    brow: Array
    """float [T]: inner brow raise."""
    pitch: Array
    """float [T]: head pitch in radians, positive looks down."""
    state: Array
    """uint8 [T]: IDLE, SPEAK or LISTEN."""
    warmth: Array
    """float [T]: the part of the smile that the other's voice causes."""
    listen: Array
    """int16 [1000 T]: the other's voice alone."""

    def __post_init__(self) -> None:
        frames = len(self.state)
        for name in (*SIGNALS, "warmth"):
            if len(getattr(self, name)) != frames:
                raise ValueError(f"truth {name} has {len(getattr(self, name))} frames, state {frames}: cut both alike")
        if self.listen.size != frames * SAMPLES_PER_FRAME:
            raise ValueError(f"truth listen has {self.listen.size} samples for {frames} frames: give 1000 a frame")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One side of one conversation."""

    name: str
    """Unique, fit for a file name."""
    group: str
    """Conversation."""
    person: int
    """Identity seed."""
    image: Array
    """uint8 [H, W, 3]: the frame before the first one that is generated."""
    reference: Array
    """uint8 [H, W, 3]: a frame from outside the span."""
    frames: Array
    """uint8 [T, H, W, 3]: the true frames."""
    speak: Array
    """int16 [1000 T]: the person's own voice alone."""
    truth: Truth
    """Truth on the same T frames."""
    text: str
    """What the person says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeClip:
    """One of the people on whom the instruments are fitted."""

    frames: Array
    """uint8 [4k + 1, H, W, 3]."""
    signals: dict[str, Array]
    """Truth signals, float [4k + 1] each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """The whole benchmark set."""

    cases: list[Case]
    """Scored cases of equal length."""
    talk: Case
    """One long conversation: drift and talk.mp4."""
    probes: list[ProbeClip]
    """People on whom the instruments are fitted."""
    digest: str
    """Names the set: its configuration and the code that renders it."""


def bench_digest(config: BenchConfig) -> str:
    """Hex digest over the configuration and the code that renders the set."""
    import components.ingest.performer as performer
    from components.evaluate import render
    from serving import tts

    home = Path(performer.__file__).parent
    sources = [*sorted(home.glob("*.py")), *sorted(home.glob("*.yaml")), Path(render.__file__), Path(tts.__file__)]
    code = [file_digest(path) for path in sources]
    text = json.dumps({"config": to_mapping(config), "code": code}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def build_bench(out: Path, config: BenchConfig, progress: StepProgress) -> Bench:
    """Render the benchmark set, or load it where it has been rendered before.

    Args:
        out: cache folder; the set goes into a folder named by its digest.
        config: what to render.
        progress: shows how far it is.
    """
    digest = bench_digest(config)
    folder = out / digest[:16]
    if not (folder / "bench.json").is_file():
        from components.evaluate.render import render_bench

        bench = render_bench(config, digest, progress)
        with staged(folder) as work:
            save_bench(bench, work)
    return load_bench(folder)


def save_bench(bench: Bench, folder: Path) -> None:
    """Write the set as one .npz a case and one for the instruments' people."""
    for case in [*bench.cases, bench.talk]:
        np.savez(
            folder / f"{case.name}.npz",
            image=case.image,
            reference=case.reference,
            frames=case.frames,
            speak=case.speak,
            state=case.truth.state,
            warmth=case.truth.warmth,
            listen=case.truth.listen,
            **{name: getattr(case.truth, name) for name in SIGNALS},
        )
    arrays: dict[str, Any] = {"frames": np.stack([p.frames for p in bench.probes])}
    arrays |= {name: np.stack([p.signals[name] for p in bench.probes]) for name in SIGNALS}
    np.savez(folder / "probes.npz", **arrays)
    described = [
        {"name": c.name, "group": c.group, "person": c.person, "text": c.text} for c in [*bench.cases, bench.talk]
    ]
    write_json(folder / "bench.json", {"digest": bench.digest, "cases": described})


def load_bench(folder: Path) -> Bench:
    """Read what `save_bench` wrote."""
    described = read_json(folder / "bench.json")
    cases = [_load_case(folder / f"{d['name']}.npz", d) for d in described["cases"]]
    with np.load(folder / "probes.npz") as file:
        stacks = {name: file[name] for name in ("frames", *SIGNALS)}
    probes = [
        ProbeClip(frames=stacks["frames"][i], signals={n: stacks[n][i] for n in SIGNALS})
        for i in range(len(stacks["frames"]))
    ]
    return Bench(cases=cases[:-1], talk=cases[-1], probes=probes, digest=described["digest"])


def _load_case(path: Path, described: dict[str, Any]) -> Case:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    truth = Truth(**{name: arrays.pop(name) for name in (*SIGNALS, "state", "warmth", "listen")})
    return Case(truth=truth, **arrays, **described)
