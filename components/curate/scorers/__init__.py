"""The registry of all scorers. README.md explains how to add one: a class, an entry here, thresholds in config.py."""

import functools
from typing import Any

from components.curate.config import ScorerConfig
from components.curate.scorers.audio import Audio, LabelQuality
from components.curate.scorers.base import ClipView, Scorer, Scores, StreamingScorer
from components.curate.scorers.camera import Camera
from components.curate.scorers.dover import Dover
from components.curate.scorers.light import Light, Stillness
from components.curate.scorers.light_asd import LightAsd
from components.curate.scorers.nudity import Nudity
from components.curate.scorers.overlay import Overlay
from components.curate.scorers.people import Container, Copies, Person
from components.curate.scorers.speech_quality import SpeechQuality
from components.curate.scorers.sync import Sync
from components.curate.scorers.text import Text
from components.runtime import part_timing

SCORERS: tuple[type[Scorer], ...] = (
    Container, Copies, Light, Stillness, Overlay, Text, Camera, Person, Audio, Sync, LabelQuality,
)  # fmt: skip
"""Scorers that run on every clip unless `scorers.disabled` names them, in the order in which thresholds are applied."""

OPTIONAL_SCORERS: tuple[type[Scorer], ...] = (Nudity, SpeechQuality, LightAsd, Dover)
"""Scorers with heavy or user-supplied weights, run only if `scorers.extra` names them."""

COLUMNS: tuple[str, ...] = tuple(column for scorer in (*SCORERS, *OPTIONAL_SCORERS) for column in scorer.columns)
"""Manifest columns of all scorers; the columns of a scorer that does not run stay empty."""


def selected_scorers(config: ScorerConfig) -> tuple[type[Scorer], ...]:
    """Return the scorer classes that a config selects.

    Raises:
        ValueError: an unknown scorer name.
    """
    names = {scorer.name for scorer in SCORERS}, {scorer.name for scorer in OPTIONAL_SCORERS}
    for given, known, field in ((config.disabled, names[0], "disabled"), (config.extra, names[1], "extra")):
        if unknown := sorted(set(given) - known):
            raise ValueError(f"scorers.{field} names {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    selected = [scorer for scorer in SCORERS if scorer.name not in config.disabled]
    selected += [scorer for scorer in OPTIONAL_SCORERS if scorer.name in config.extra]
    return tuple(selected)


@functools.cache
def make_scorers(config: ScorerConfig) -> tuple[Scorer, ...]:
    """Instantiate the selected scorers once per process.

    Raises:
        ValueError: an unknown scorer name, or missing weights.
    """
    return tuple(scorer.make(config) for scorer in selected_scorers(config))


def validate_optional(config: ScorerConfig) -> None:
    """Instantiate the scorers of `scorers.extra` once, to report bad weights before any source is decoded.

    Raises:
        ValueError: missing or invalid weights.
    """
    for scorer in selected_scorers(config):
        if scorer in OPTIONAL_SCORERS:
            scorer.make(config)


@functools.cache
def describe_scorers(config: ScorerConfig) -> tuple[dict[str, Any], ...]:
    """Return name, version, licence, weights digest and columns of each selected scorer; loads no network.

    Raises:
        ValueError: an unknown scorer name, or a missing weights file.
    """
    return tuple(scorer.describe(config) for scorer in selected_scorers(config))


def streaming_scorers(scorers: tuple[Scorer, ...]) -> dict[str, StreamingScorer]:
    """Return a new streaming scorer for one source from every scorer that has one, by scorer name."""
    streams = {scorer.name: scorer.start_stream() for scorer in scorers}
    return {name: stream for name, stream in streams.items() if stream is not None}


def score_clip(scorers: tuple[Scorer, ...], clip: ClipView) -> Scores:
    """Return every score column of a clip, rounded to 6 decimals to keep the manifest reproducible."""
    values: Scores = dict.fromkeys(COLUMNS)
    for scorer in scorers:
        with part_timing.part(f"score: {scorer.name}"):
            values |= scorer.score(clip)
    return {name: None if value is None else round(float(value), 6) for name, value in values.items()}
