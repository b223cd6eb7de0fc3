"""Configuration and report of the evaluate step."""

from dataclasses import dataclass
from typing import Any

from lpm_model.config import FRAMES_PER_LATENT, VIDEO_FPS, setting

HELD_OUT_IDENTITIES = 100_000
"""First identity seed of the benchmark's people; training corpora use smaller seeds."""
PROBE_IDENTITIES = 200_000
"""First identity seed of the people on whom the probes are fitted; they are never scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """The benchmark set: held-out people saying held-out sentences to each other."""

    conversations: int = setting(4, help="Two-person conversations; each gives two cases.")
    seconds: int = setting(12, help="Length of each case (s).")
    talk_seconds: int = setting(30, help="Length of the long conversation for drift and talk.mp4 (s).")
    probe_people: int = setting(64, help="People on whom the probes are fitted.")
    probe_frames: int = setting(25, help="Frames per probe person; 4k + 1.")
    size_px: int = setting(128, help="Height and width of the frames (px).")
    seed: int = setting(0, help="Seed of people, sentences and timing.")

    def __post_init__(self) -> None:
        if self.conversations < 2:
            raise ValueError(f"bench.conversations is {self.conversations}: shuffling needs at least 2")
        if self.seconds < 4 or self.talk_seconds < self.seconds:
            raise ValueError(
                f"bench.seconds is {self.seconds}, bench.talk_seconds {self.talk_seconds}: "
                "use at least 4 s per case, and a talk no shorter than a case"
            )
        if self.probe_people < 8:
            raise ValueError(f"bench.probe_people is {self.probe_people}: the probes need at least 8 people")
        if self.probe_frames % FRAMES_PER_LATENT != 1 or self.probe_frames < 5:
            raise ValueError(f"bench.probe_frames is {self.probe_frames}: use 4k + 1, such as 25")

    @property
    def frames(self) -> int:
        """Scored frames per case: a whole number of seconds and of latent frames."""
        return self.seconds * VIDEO_FPS

    @property
    def talk_frames(self) -> int:
        """Frames of the long conversation."""
        return self.talk_seconds * VIDEO_FPS


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """The evaluate step."""

    bench: BenchConfig = setting(factory=BenchConfig, help="The benchmark set.")
    cache: str = setting(".work/bench", help="Cache folder of the rendered benchmark set.", affects=False)
    base_cases: int = setting(1, help="Cases that the Base LPM generates too, to compare its speed; 0 skips Base.")
    base_seconds: int = setting(2, help="Length of each Base case (s).")
    base_steps: int = setting(12, help="Sampling steps of Base.")
    base_guidance: float = setting(2.0, help="Guidance scale of Base.")
    seed: int = setting(0, help="Seed of the models' noise.")

    def __post_init__(self) -> None:
        if self.base_cases and not 1 <= self.base_seconds <= self.bench.seconds:
            raise ValueError(f"base_seconds is {self.base_seconds}: use 1..{self.bench.seconds} (bench.seconds)")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateReport:
    """Result of LPM-Bench; written as report.json."""

    scores: dict[str, float | None]
    """Scores to compare models by."""
    intervals: dict[str, tuple[float | None, float | None]]
    """90 % bootstrap intervals over cases of the anchored scores."""
    anchors: dict[str, dict[str, float | None]]
    """Raw value and both anchors of every metric: {"value", "ground_truth" (1), "shuffled" (0)}."""
    per_case: list[dict[str, Any]]
    """Raw values of every case."""
    probes: dict[str, Any]
    """Accuracy of each probe on held-out ground truth."""
    quality: dict[str, float | None]
    """Image quality figures."""
    drift: dict[str, Any]
    """Change over the long rollout, and the same figures for the ground truth."""
    speed: dict[str, Any]
    """Time per second of video, Online and Base."""
    bench: dict[str, Any]
    """The benchmark set: digest, note, people, seconds."""
    seconds: dict[str, float]
    """Time that each part of the evaluation took (s)."""
    notes: list[str]
    """Limits that a reader must know, such as a weak probe."""
    paths: dict[str, str]
    """Files next to report.json."""
