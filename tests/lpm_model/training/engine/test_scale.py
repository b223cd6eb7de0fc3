"""Two processes (gloo on 127.0.0.1) equal one: losses, gradients, optimizer steps, checkpoints."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from components.runtime.tracking import TrackingConfig
from components.train.config import TrainConfig
from lpm_model.config import ModelConfig, to_mapping
from lpm_model.files import read_json
from lpm_model.sampler import load_base
from lpm_model.training.base.config import BaseTraining, Preference
from lpm_model.training.engine.config import Scale
from lpm_model.training.engine.launch import join_processes, launch
from tests.lpm_model import tiny
from tests.lpm_model.training.processes import ADAPTED, DATA, HALF, SETTINGS, fit, measure

pytestmark = pytest.mark.timeout(180)
Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scale")
    tiny.write_dataset(place / "dataset", tiny.write_autoencoder(place / "autoencoder"))
    return place


@pytest.fixture(scope="module")
def one_process(place: Path) -> Found:
    """Train in one process, and once more up to a halfway checkpoint for the tests of resuming."""
    fit(place, SETTINGS, place / "one_process", batches=HALF)
    return fit(place, SETTINGS, place / "whole")


@pytest.fixture(scope="module")
def two_processes(place: Path, one_process: Found) -> dict[str, Found]:
    """Train in two processes; in the last run one fails, which stops the other and reaches the caller as its error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        with pytest.raises(ValueError, match="the disk is full: make room"):
            launch(measure, DATA, place)
    assert time.time() - (place / "resumed.safetensors").stat().st_mtime < 60
    return {name: load_file(place / f"{name}.safetensors") for name in ("data", "sequence", "lora", "resumed")}


def part(found: Found, name: str) -> Found:
    return {key: value for key, value in found.items() if key.startswith(f"{name}.")}


def max_relative_difference(found: Found, wanted: Found) -> float:
    """Return the largest difference relative to the largest value of its tensor."""
    assert found.keys() == wanted.keys()
    assert found
    return max(
        float((value - wanted[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-3))
        for name, value in found.items()
    )


def relative_deviation(found: Found, wanted: Found, name: str) -> float:
    """Return the distance between two trained models relative to the length of the training path."""
    ours, theirs = part(found, name), part(wanted, name)
    assert ours.keys() == theirs.keys()
    apart = sum(float((value - theirs[key]).square().sum()) for key, value in ours.items())
    return (apart / sum(float(value.square().sum()) for value in theirs.values())) ** 0.5


@pytest.mark.parametrize("case", ["data", "sequence"])
def test_two_process_losses_and_gradients_equal_one_process(
    case: str, one_process: Found, two_processes: dict[str, Found]
) -> None:
    found = two_processes[case]
    losses = one_process["losses"].unflatten(0, (-1, 2)).mean(1) if case == "data" else one_process["losses"]
    assert torch.allclose(found["losses"], losses[: len(found["losses"])], atol=1e-4)
    assert max_relative_difference(part(found, "gradient"), part(one_process, "gradient")) < 1e-4


def test_two_process_optimizer_steps_equal_one_process(one_process: Found, two_processes: dict[str, Found]) -> None:
    for name in ("weight", "ema"):
        assert relative_deviation(two_processes["sequence"], one_process, name) < 2e-2


def test_two_processes_resume_from_checkpoint_of_one(one_process: Found, two_processes: dict[str, Found]) -> None:
    for name in ("weight", "ema"):
        assert relative_deviation(two_processes["resumed"], one_process, name) < 2e-2
    assert len(two_processes["resumed"]["losses"]) == HALF + HALF // 2


def test_one_process_resumes_from_checkpoint_of_two(
    place: Path, one_process: Found, two_processes: dict[str, Found]
) -> None:
    state = shutil.copytree(place / "data", place / "data-again")
    shards = read_json(state / "run.json")["shards"]
    files = sorted(path.name for path in (state / shards).iterdir())
    assert len(files) == 2
    assert all(name.endswith(".safetensors") for name in files)
    resumed = fit(place, SETTINGS, state)
    assert len(resumed["losses"]) == HALF // 2 + HALF
    for name in ("weight", "ema"):
        assert relative_deviation(resumed, one_process, name) < 2e-2


def test_sharded_lora_training_equals_one_process(place: Path, two_processes: dict[str, Found]) -> None:
    single = fit(place, ADAPTED, place / "lora-alone")
    assert max_relative_difference(part(two_processes["lora"], "gradient"), part(single, "gradient")) < 1e-4
    assert relative_deviation(two_processes["lora"], single, "weight") < 2e-2
    assert all(".adapters." in name for name in part(single, "gradient"))


def test_launch_returns_result_of_main_process() -> None:
    assert launch(max, DATA, 3, 5) == 5


def test_torchrun_entry_point_trains_and_leaves_no_checkpoint(
    place: Path, empty_database: Path, tmp_path: Path
) -> None:
    """Run the entry point under torchrun, as in every pod: one model folder, one MLflow run, no checkpoint left."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    config = TrainConfig(
        **{name: getattr(SETTINGS, name) for name in to_mapping(SETTINGS) if name not in ("scale", "precision")}
        | {"steps": 2, "scale": DATA, "autoencoder": str(place / "autoencoder")},
        tracking=TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="test"),
    )
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "components.runtime.torchrun", "train"),
        *("--dataset", str(place / "dataset"), "--model", str(tmp_path / "base")),
        *("--config", json.dumps(to_mapping(config))),
    ]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=150, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_base(tmp_path / "base").config == SETTINGS.model
    assert read_json(tmp_path / "base" / "report.json")["metrics"]["steps"] == 2
    assert sorted(path.name for path in tmp_path.iterdir() if "base" in path.name) == ["base"]
    assert not (tmp_path / "base" / "checkpoint").exists()


def test_invalid_scale_is_rejected() -> None:
    with pytest.raises(ValueError, match="choose a divisor"):
        Scale(processes=3, sequence_parallel=2)
    with pytest.raises(ValueError, match="make it a multiple"):
        BaseTraining(scale=Scale(processes=2))
    with pytest.raises(ValueError, match="a divisor of the 2 heads"):
        BaseTraining(model=ModelConfig(), scale=Scale(processes=4, sequence_parallel=4))
    with pytest.raises(ValueError, match="in one process"):
        BaseTraining(accumulate=2, scale=DATA, preference=Preference(conditions=1))
    with pytest.raises(ValueError, match="lpm trainjob"):
        launch(max, Scale(nodes=2), 1, 2)
    with pytest.raises(ValueError, match="1 processes were started"), join_processes(replace(DATA)):
        pass
