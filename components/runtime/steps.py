"""The six steps in one table: inputs, output, and where their code and config live."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the pipeline."""

    verb: str
    """CLI command, DVC stage, component folder, pipeline task and test folder."""
    inputs: Mapping[str, str]
    """Parameter of the step function -> folder of the run that it reads."""
    output: str
    """Parameter of the step function that names the output folder."""
    folder: str
    """Folder of the run that the output becomes."""
    config_name: str
    """Config dataclass in components.<verb>.config."""
    about: str
    """Summary line of --help."""
    more: str = ""
    """Last lines of --help: further reading."""
    shared_cache: str = ""
    """Parameter of the step function, and name of the cache folder that it receives for partial results shared by
    several calls; not passed without a cache."""
    cacheable: bool = True
    """False if the step has effects outside its output folder."""

    @property
    def module(self) -> str:
        """Module of the step function."""
        return f"components.{self.verb}.step"

    def function(self) -> Callable[..., Any]:
        """Import and return the step function."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.verb)
        return function

    def config_class(self) -> type[Any]:
        """Import and return the config dataclass."""
        cls: type[Any] = getattr(importlib.import_module(f"components.{self.verb}.config"), self.config_name)
        return cls


STEPS: dict[str, Step] = {
    step.verb: step
    for step in (
        Step(
            verb="ingest",
            inputs={},
            output="raw",
            folder="raw",
            config_name="IngestConfig",
            about="Collect source videos with their licence and consent (performer, a folder, or s3://).",
        ),
        Step(
            verb="curate",
            inputs={"raw": "raw"},
            output="dataset",
            folder="dataset",
            config_name="CurationConfig",
            about="Cut, filter, label and encode the videos into training clips.",
            shared_cache="analysis",
            more="curate.profile=tiny|pretrain|sft sets the thresholds: `lpm data thresholds` prints them all.",
        ),
        Step(
            verb="train",
            inputs={"dataset": "dataset"},
            output="model",
            folder="base",
            config_name="TrainConfig",
            about="Train Base LPM, the bidirectional model, by flow matching.",
        ),
        Step(
            verb="distill",
            inputs={"base": "base", "dataset": "dataset"},
            output="model",
            folder="online",
            config_name="DistillConfig",
            about="Distil Base LPM into Online LPM, the causal model that runs live.",
        ),
        Step(
            verb="evaluate",
            inputs={"model": "online", "base": "base"},
            output="report",
            folder="report",
            config_name="EvaluateConfig",
            about="Measure a model with LPM-Bench and write the report.",
        ),
        Step(
            verb="deploy",
            inputs={"model": "online", "report": "report", "base": "base"},
            output="release",
            folder="release",
            config_name="DeployConfig",
            about="Register the model in MLflow, apply the promotion rule, write the release folder.",
            cacheable=False,
        ),
    )
}


def report_mapping(report: Any) -> dict[str, Any]:
    """Return the plain values of a step's report dataclass, with paths as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    mapping: dict[str, Any] = plain(dataclasses.asdict(report))
    return mapping
