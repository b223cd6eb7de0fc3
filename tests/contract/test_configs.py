"""Every YAML file loads into typed configs; unknown keys are rejected with the nearest valid key."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lpm_model.config import ModelConfig, help_texts
from lpm_model.training.base.config import BaseTraining
from pipelines.config import CONF, SHARED, RootConfig, annotated_yaml, groups, load_config, to_plain
from tests.contract.project import ROOT

CHOICES = [f"{group}={choice}" for group, choices in groups().items() for choice in choices]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_loads(choice: str) -> None:
    config = load_config([choice])
    group, _, name = choice.partition("=")
    assert group != "profile" or config.profile == name


def test_every_yaml_is_a_selectable_choice() -> None:
    found = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml") if path.parent.name != SHARED}
    assert found == {"config.yaml", *(f"{group}/{name}.yaml" for group in groups() for name in groups()[group])}


def test_there_are_three_profiles() -> None:
    assert groups()["profile"] == ["17b", "small", "tiny"]


def test_tiny_is_the_default_profile() -> None:
    assert load_config() == load_config(["profile=tiny"])
    assert load_config().profile == "tiny"


def test_tiny_only_techniques_are_off_by_default() -> None:
    assert BaseTraining().crop_steps == 0
    assert (ModelConfig().residual_gain, ModelConfig().predicts) == (0.0, "velocity")
    assert load_config().train.crop_steps > 0
    assert (load_config().train.model.residual_gain, load_config().train.model.predicts) == (2.0, "clean")


def test_overrides_set_their_field() -> None:
    config = load_config(["data.source=/some/where else", "curate.size_px=64", "deploy.promotion.minimum_gain=1e-2"])
    assert config.data.source == "/some/where else"
    assert config.curate.size_px == 64
    assert config.deploy.promotion.minimum_gain == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("data.sorce=x", "data.source"),
        ("curat.size_px=64", "curate"),
        ("curate.size=64", "curate.size_px"),
        ("ingest.require_consen=false", "ingest.require_consent"),
        ("deploy.promotion.minimum_gian=1", "deploy.promotion.minimum_gain"),
        ("train._target_=os.system", "train."),
        ("profile=tyni", "profile=tiny"),
        ("data=foldr", "data=folder"),
    ],
)
def test_unknown_keys_are_rejected_with_the_nearest_key(override: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=suggestion) as caught:
        load_config([override])
    assert "unknown config key" in str(caught.value) or "did you mean" in str(caught.value)


@pytest.mark.parametrize("override", ["curate.size_px=big", "data.source=", "train.steps=", "curate=3", "oops", "=1"])
def test_values_of_the_wrong_type_are_rejected(override: str) -> None:
    with pytest.raises(ValueError, match="config|override|must be"):
        load_config([override])


def test_unknown_keys_in_yaml_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("curate:\n  sise_px: 64\n")
    with pytest.raises(ValueError, match=r"curate\.size_px"):
        load_config(values=path)
    with pytest.raises(ValueError, match="missing"):
        load_config(values=tmp_path / "none.yaml")


def test_params_yaml_is_the_complete_default_config() -> None:
    """Regenerate it with `lpm config --all > params.yaml`."""
    text = (ROOT / "params.yaml").read_text()
    assert text == annotated_yaml(load_config())
    assert yaml.safe_load(text) == to_plain(load_config())


@pytest.mark.parametrize("profile", groups()["profile"])
def test_config_round_trips_through_yaml(profile: str, tmp_path: Path) -> None:
    config = load_config([f"profile={profile}", "curate.profile=sft", "train.steps=17"])
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(to_plain(config)))
    assert load_config(values=path) == config
    assert load_config(["train.steps=18"], values=path) != config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curate.workers=0", "curate.workers is 0: give at least 1"),
        ("ingest.performer.workers=0", "ingest.performer.workers is 0: give at least 1"),
        ("distill.online.chunk_latents=2", "distill.online.chunk_latents is 2; choose 1, 3 or 6"),
        ("evaluate.bench.conversations=1", "evaluate.bench.conversations is 1: shuffling"),
        ("curate.captions.vlm.url=host", "curate.captions.vlm.url is 'host': give"),
        ("train.scale.nodes=0", "train.scale.nodes is 0"),
        ("train.lora.rank=-1", "train.lora.rank is -1 on 3 targets"),
        (
            "curate.thresholds.max_txt_ratio=1",
            "curate.thresholds.max_txt_ratio is unknown: did you mean max_text_ratio",
        ),
        ("resources.train.gpus=-1", "resources.train.gpus is -1"),
        ("data.source=''", "data.source is empty"),
    ],
)
def test_value_errors_name_the_full_key_once(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config([override])
    assert str(caught.value).startswith(message)


def test_every_setting_has_a_help_text() -> None:
    def without_help(cls: type[Any], prefix: str) -> Iterator[str]:
        hints = typing.get_type_hints(cls)
        for name, text in help_texts(cls).items():
            if not text.endswith((".", ")")):
                yield f"{prefix}{name}"
            if dataclasses.is_dataclass(hints[name]):
                yield from without_help(hints[name], f"{prefix}{name}.")

    assert list(without_help(RootConfig, "")) == []
