"""All scorers in one list. To add one: write its class beside these, list it here, give its columns thresholds."""

import functools
from typing import Any

from components.curate.config import ScorerConfig
from components.curate.scorers.base import Clip, Scorer, Scores, Watcher
from components.curate.scorers.camera import Camera
from components.curate.scorers.dover import Dover
from components.curate.scorers.light import Light, Stillness
from components.curate.scorers.light_asd import LightAsd
from components.curate.scorers.nudity import Nudity
from components.curate.scorers.overlay import Overlay
from components.curate.scorers.people import Container, Copies, Person
from components.curate.scorers.sound import Labels, Sound
from components.curate.scorers.speech_quality import SpeechQuality
from components.curate.scorers.sync import Sync
from components.curate.scorers.text import Text
from components.runtime import part_timing

SCORERS: tuple[type[Scorer], ...] = (
    Container, Copies, Light, Stillness, Overlay, Text, Camera, Person, Sound, Sync, Labels,
)  # fmt: skip
"""Run on every clip unless `scorers.off` names them; in the order in which their thresholds are tried."""

HEAVY: tuple[type[Scorer], ...] = (Nudity, SpeechQuality, LightAsd, Dover)
"""Run only where `scorers.extra` names them."""

COLUMNS: tuple[str, ...] = tuple(column for scorer in (*SCORERS, *HEAVY) for column in scorer.columns)
"""Columns of all scorers; those of a scorer that is not run stay empty."""


def chosen(config: ScorerConfig) -> tuple[type[Scorer], ...]:
    """The scorers that a config asks for.

    Raises:
        ValueError: a name that no scorer has.
    """
    names = {scorer.name for scorer in SCORERS}, {scorer.name for scorer in HEAVY}
    for given, known, field in ((config.off, names[0], "off"), (config.extra, names[1], "extra")):
        if odd := sorted(set(given) - known):
            raise ValueError(f"scorers.{field} names {', '.join(odd)}: choose from {', '.join(sorted(known))}")
    wanted = [scorer for scorer in SCORERS if scorer.name not in config.off]
    wanted += [scorer for scorer in HEAVY if scorer.name in config.extra]
    return tuple(wanted)


@functools.cache
def make_scorers(config: ScorerConfig) -> tuple[Scorer, ...]:
    """The same, ready to run; once a process.

    Raises:
        ValueError: a name that no scorer has, or weights that are missing.
    """
    return tuple(scorer.make(config) for scorer in chosen(config))


def try_extra(config: ScorerConfig) -> None:
    """Start the scorers that `scorers.extra` names once, so that weights which are none cost no source.

    Raises:
        ValueError: weights that are missing, or a file that does not hold them.
    """
    for scorer in chosen(config):
        if scorer in HEAVY:
            scorer.make(config)


@functools.cache
def passports(config: ScorerConfig) -> tuple[dict[str, Any], ...]:
    """Name, version, licence, weights and columns of each of them, once a process; starts no network.

    Raises:
        ValueError: a name that no scorer has, or a weight file that is missing.
    """
    return tuple(scorer.passport(config) for scorer in chosen(config))


def watchers(scorers: tuple[Scorer, ...]) -> dict[str, Watcher]:
    """A watcher for one source from every scorer that wants one, by name."""
    found = {scorer.name: scorer.watch() for scorer in scorers}
    return {name: watcher for name, watcher in found.items() if watcher is not None}


def score_clip(scorers: tuple[Scorer, ...], clip: Clip) -> Scores:
    """Every column of a clip, rounded so that the manifest does not hang on the last bit."""
    values: Scores = dict.fromkeys(COLUMNS)
    for scorer in scorers:
        with part_timing.part(f"score: {scorer.name}"):
            values |= scorer.score(clip)
    return {name: None if value is None else round(float(value), 6) for name, value in values.items()}
