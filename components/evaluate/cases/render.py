"""Renders the benchmark set with the synthetic-data generator (`components.performer`)."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from components.evaluate.cases.cases import SPEAK, Array, Bench, Case, GroundTruth, ProbeClip
from components.evaluate.config import PROBE_IDENTITIES, BenchConfig
from lpm_model.config import SAMPLES_PER_FRAME, VIDEO_FPS
from lpm_model.progress import Progress

if TYPE_CHECKING:
    from components.performer.tracks import Tracks

LEAD_FRAMES = VIDEO_FPS
"""Frames before the character image; the reference is one of them."""
REFERENCE_FRAME = 6
"""Index of the reference."""
MIN_SPEAKING_FRACTION = 0.22
"""A conversation is selected if both sides speak in at least this fraction of the span."""
MIN_QUIET_FRACTION = 0.35
"""Both sides are also silent in at least this fraction of the span."""
MAX_TRIES = 12
"""Candidates per selected conversation."""
PROBE_SEED = 49
"""Seed of the motion of the probe people; their sentences come from the training bank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderJob:
    """One person and one motion to render."""

    person: int
    """Identity seed."""
    tracks: "Tracks"
    """Motion."""
    size_px: int
    """Height and width of the frames (px)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """One side of a conversation before it is rendered."""

    group: str
    """Conversation."""
    side: str
    """a or b."""
    person: int
    """Identity seed."""
    own: Any
    """The person's `Side` of the conversation."""
    partner: Any
    """The partner's `Side`."""
    animation: Any
    """The person's `Animation`."""


def render_bench(config: BenchConfig, digest: str, progress: Progress) -> Bench:
    """Render the cases, the long conversation and the probe people."""
    scripts = _cases(config)
    talk = _talk(config)
    probes = _probe_tracks(config)
    jobs = [RenderJob(person=s.person, tracks=s.animation.tracks, size_px=config.size_px) for s in [*scripts, talk]] + [
        RenderJob(person=PROBE_IDENTITIES + i, tracks=tracks, size_px=config.size_px) for i, tracks in enumerate(probes)
    ]
    videos = list(progress.track(_render(jobs), "render benchmark people", len(jobs)))
    cases = [_case(s, v, config.frames) for s, v in zip(scripts, videos, strict=False)]
    clips = [
        ProbeClip(frames=video, signals=_signals(tracks))
        for video, tracks in zip(videos[len(scripts) + 1 :], probes, strict=True)
    ]
    return Bench(cases=cases, talk=_case(talk, videos[len(scripts)], config.talk_frames), probes=clips, digest=digest)


def _cases(config: BenchConfig) -> list[Script]:
    """Select both sides of the first conversations in which both people speak and listen."""
    selected: list[Script] = []
    for index in range(config.conversations * MAX_TRIES):
        pair = _conversation(config, index, config.frames)
        speaking = [float((s.animation.state[LEAD_FRAMES + 1 :] == SPEAK).mean()) for s in pair]
        remaining = config.conversations * MAX_TRIES - index - 1
        needed = config.conversations - len(selected) // 2
        good = all(MIN_SPEAKING_FRACTION <= part <= 1 - MIN_QUIET_FRACTION for part in speaking)
        if good or remaining < needed:
            selected += pair
        if len(selected) == 2 * config.conversations:
            break
    return selected


def _talk(config: BenchConfig) -> Script:
    """Return the side of a further conversation with the most even split of speaking and listening."""
    index = config.conversations * MAX_TRIES
    pair = _conversation(config, index, config.talk_frames)
    return min(pair, key=lambda s: abs(float((s.animation.state == SPEAK).mean()) - 0.5))


def _conversation(config: BenchConfig, index: int, frames: int) -> list[Script]:
    from components.performer.compose import conversation, conversation_id, identity_seeds
    from components.performer.config import PerformerConfig

    performer = PerformerConfig(
        bank="heldout",
        conversations=index + 1,
        seconds_per_conversation=(LEAD_FRAMES + 1 + frames) / VIDEO_FPS,
        size_px=config.size_px,
        seed=config.seed,
    )
    sides, animations = conversation(performer, index)
    people = dict(zip("ab", identity_seeds(performer, index), strict=True))
    return [
        Script(
            group=conversation_id(performer, index),
            side=side,
            person=people[side],
            own=sides[side],
            partner=sides[other],
            animation=animations[side],
        )
        for side, other in (("a", "b"), ("b", "a"))
    ]


def _probe_tracks(config: BenchConfig) -> "list[Tracks]":
    """Return the motion of the probe people: spans of training conversations, two thirds of them with speech."""
    from components.performer.compose import conversation
    from components.performer.config import PerformerConfig

    conversations = -(-config.probe_people // 12)
    performer = PerformerConfig(
        bank="train", conversations=conversations, seconds_per_conversation=24, size_px=config.size_px, seed=PROBE_SEED
    )
    chance = np.random.default_rng([config.seed, 17])
    animations = [p for i in range(conversations) for p in conversation(performer, i)[1].values()]
    pieces = []
    for person in range(config.probe_people):
        animation = animations[person % len(animations)]
        starts = np.arange(0, len(animation.state) - config.probe_frames)
        spoken = np.array([(animation.state[s : s + config.probe_frames] == SPEAK).mean() for s in starts])
        wanted = np.flatnonzero(spoken > 0.6) if person % 3 else np.flatnonzero(spoken < 0.3)
        start = int(chance.choice(wanted if wanted.size else starts))
        pieces.append(animation.tracks.window(start, start + config.probe_frames))
    return pieces


def _signals(tracks: "Tracks") -> dict[str, Array]:
    """Return the ground-truth signals that are visible in a frame."""
    from components.performer.tracks import ARKIT_INDEX

    shapes = tracks.blendshapes
    return {
        "jaw_open": shapes[:, ARKIT_INDEX["jawOpen"]],
        "smile": (shapes[:, ARKIT_INDEX["mouthSmile_L"]] + shapes[:, ARKIT_INDEX["mouthSmile_R"]]) / 2,
        "brow": shapes[:, ARKIT_INDEX["browInnerUp"]],
        "pitch": tracks.rotation[:, 0],
    }


def _case(script: Script, video: Array, frames: int) -> Case:
    """Cut the scored span out of a rendered side: its image is frame LEAD_FRAMES, its audio starts right after it."""
    first = LEAD_FRAMES + 1
    span = slice(first, first + frames)
    samples = slice(first * SAMPLES_PER_FRAME, (first + frames) * SAMPLES_PER_FRAME)
    signals = {name: values[span] for name, values in _signals(script.animation.tracks).items()}
    return Case(
        name=f"{script.group}_{script.side}",
        group=script.group,
        person=script.person,
        image=video[LEAD_FRAMES],
        reference=video[REFERENCE_FRAME],
        frames=video[span],
        speak=script.own.pcm[samples],
        ground_truth=GroundTruth(
            state=script.animation.state[span],
            warmth=script.animation.smile[span],
            listen=script.partner.pcm[samples],
            **signals,
        ),
        text=script.own.text,
    )


def _render(jobs: list[RenderJob]) -> Any:
    """Render on all cores; yield the videos in order."""
    workers = min(os.cpu_count() or 1, len(jobs), 8)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_render_one, jobs, chunksize=1)


def _one_thread() -> None:
    """Limit a worker to one thread; must run before the numeric libraries are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"


def _render_one(job: RenderJob) -> Array:
    from components.performer.identity import Identity
    from components.performer.renderer import Renderer

    return Renderer(job.size_px).render(Identity.from_seed(job.person), job.tracks)
