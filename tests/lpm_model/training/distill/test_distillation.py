"""The online_folder distillation: stages, resuming to the same bytes, LoRA, several processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpm_model.checkpoint import read_weights
from lpm_model.config import Lora, OnlineConfig
from lpm_model.online import load_online
from lpm_model.training.distill.config import Distillation, DmdStage, OdeStage, OffPolicyStage, OnPolicyStage
from lpm_model.training.distill.stages import DmdModule, OdeModule
from lpm_model.training.distill.train import distill_online
from lpm_model.training.engine.config import Scale
from lpm_model.training.engine.launch import launch
from tests.killed import Killed, kill_after
from tests.lpm_model.training.distill.conftest import ALL_STAGES, UNMONITORED
from tests.lpm_model.training.distill.ranks import distill_and_record

FILES = ("model.safetensors", "refiner.safetensors", "config.json", "provenance.json")
STAGES = ("ode", "off_policy", "on_policy", "refiner", "long")


@pytest.fixture(scope="module")
def online_folder(tmp_path_factory: pytest.TempPathFactory, base: Path, dataset: Path) -> Path:
    folder = tmp_path_factory.mktemp("online")
    distill_online(base, dataset, folder, UNMONITORED)
    return folder


def same_files(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(
    ("stage", "steps"),
    [(OdeModule, 2), (DmdModule, 1), (DmdModule, 3), (DmdModule, 9)],
)
def test_killed_distillation_resumes_bit_equal(
    stage: type,
    steps: int,
    online_folder: Path,
    base: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, stage, steps)
        with pytest.raises(Killed):
            distill_online(base, dataset, tmp_path, UNMONITORED)
    distill_online(base, dataset, tmp_path, UNMONITORED)
    assert same_files(tmp_path, online_folder)


def test_killed_distillation_retains_the_same_best_steps(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill_online(base, dataset, tmp_path / "online_folder", ALL_STAGES)
    with monkeypatch.context() as patch:
        kill_after(patch, DmdModule, 5)
        with pytest.raises(Killed):
            distill_online(base, dataset, tmp_path / "killed", ALL_STAGES)
    distill_online(base, dataset, tmp_path / "killed", ALL_STAGES)
    assert same_files(tmp_path / "killed", tmp_path / "online_folder")
    metrics = json.loads((tmp_path / "online_folder" / "provenance.json").read_text())["metrics"]
    # Each stage starts from the best weights of the previous one and retains weights that are no worse.
    chain = [metrics[f"{key}_validation_distance"] for key in STAGES if key != "refiner"]
    assert chain == sorted(chain, reverse=True)
    assert all(0 <= metrics[f"{key}_best_step"] <= getattr(ALL_STAGES, key).steps for key in STAGES)


def test_online_folder_is_complete(online_folder: Path, base: Path) -> None:
    model = load_online(online_folder)
    assert model.online == UNMONITORED.online
    metrics = json.loads((online_folder / "provenance.json").read_text())["metrics"]
    assert all(metrics[f"{key}_loss"] > 0 for key in STAGES)
    assert not list(online_folder.glob("checkpoint-*"))
    assert not (online_folder / "trajectories").exists()
    assert (online_folder / "autoencoder" / "model.safetensors").read_bytes() == (
        base / "autoencoder" / "model.safetensors"
    ).read_bytes()


def test_distillations_share_stored_trajectories(
    online_folder: Path, base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "trajectories"
    ode_alone = replace(UNMONITORED, off_policy=OffPolicyStage(), on_policy=OnPolicyStage(), refiner=OnPolicyStage())
    distill_online(base, dataset, tmp_path / "one", ode_alone, trajectories=kept)
    with monkeypatch.context() as patch:
        patch.setattr("lpm_model.training.distill.stage_runner.sample_teacher", None)
        distill_online(base, dataset, tmp_path / "other", UNMONITORED, trajectories=kept)
        assert same_files(tmp_path / "other", online_folder)
        with pytest.raises(TypeError):
            distill_online(base, dataset, tmp_path / "more", replace(UNMONITORED, teacher_steps=5), trajectories=kept)


@pytest.mark.parametrize("key", STAGES)
def test_each_stage_changes_only_its_role(key: str, base: Path, dataset: Path, tmp_path: Path) -> None:
    none = {name: replace(getattr(UNMONITORED, name), steps=0) for name in STAGES}
    settings = replace(UNMONITORED, **{**none, key: getattr(UNMONITORED, key)})
    distill_online(base, dataset, tmp_path, settings)
    before = read_weights(base / "model.safetensors")
    moved = {
        stem: any(not torch.equal(value, before[name]) for name, value in read_weights(path).items())
        for stem in ("model", "refiner")
        for path in [tmp_path / f"{stem}.safetensors"]
    }
    # Stages before `refiner` also change the initial weights of the refiner.
    assert moved == {"model": key != "refiner", "refiner": key != "long"}


def test_consistency_objective_replaces_regression(base: Path, dataset: Path, tmp_path: Path) -> None:
    short = replace(UNMONITORED, off_policy=OffPolicyStage(), on_policy=OnPolicyStage(), refiner=OnPolicyStage())
    losses = {}
    for objective in ("regression", "consistency"):
        ode = OdeStage(steps=3, objective=objective, ema_decay=0.5)  # type: ignore[arg-type]
        settings = replace(short, ode=ode, long=replace(short.long, steps=0))
        losses[objective] = distill_online(base, dataset, tmp_path / objective, settings)["ode_loss"]
    assert losses["consistency"] > 0
    assert losses["consistency"] != losses["regression"]


def test_lora_distillation_saves_merged_model_and_refiner_delta(base: Path, dataset: Path, tmp_path: Path) -> None:
    distill_online(base, dataset, tmp_path, replace(UNMONITORED, lora=Lora(rank=2)))
    before, after = (read_weights(folder / "model.safetensors") for folder in (base, tmp_path))
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in changed)
    for name in changed:
        update = (after[name].float() - before[name].float()).double()
        large = torch.linalg.svdvals(update)[:3]
        assert large[2] < 0.3 * large[0]  # rank 2, up to rounding of the saved weights
    refiner = read_weights(tmp_path / "refiner.safetensors")
    assert all(".adapters.refiner." in name for name in refiner)
    model = load_online(tmp_path)
    assert model.refiner is not None
    own, shared = dict(model.refiner.named_parameters()), dict(model.backbone.named_parameters())
    assert {id(own[name]) for name in shared} == {id(weight) for weight in shared.values()}
    assert own.keys() - shared.keys() == refiner.keys()
    (tmp_path / "refiner.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"refiner\.safetensors does not fit this model"):
        load_online(tmp_path)


def test_invalid_distillation_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="does not fill a batch of 8"):
        Distillation(trajectories=4)
    with pytest.raises(ValueError, match=r"set online\.refiner_sigma"):
        Distillation(refiner=OnPolicyStage(steps=1))
    with pytest.raises(ValueError, match="3 processes divide a batch of 8"):
        Distillation(scale=Scale(processes=3))
    with pytest.raises(ValueError, match="critic_steps 0: use at least 0 and at least 1"):
        DmdStage(critic_steps=0)
    with pytest.raises(ValueError, match="steps of at least 0 and ema_decay"):
        OdeStage(steps=-1)
    with pytest.raises(ValueError, match=r"must fall from 1\.0"):
        OnlineConfig(backbone_sigmas=())


def test_online_model_is_rejected_as_teacher(online_folder: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an Online LPM, which is causal"):
        distill_online(online_folder, dataset, tmp_path, UNMONITORED)


def test_two_process_distillation_keeps_ranks_in_sync(base: Path, dataset: Path, tmp_path: Path) -> None:
    settings = replace(ALL_STAGES, scale=Scale(processes=2))
    metrics = launch(distill_and_record, settings.scale, base, dataset, tmp_path, settings)
    assert all(f"{key}_loss" in metrics for key in STAGES)
    notes = [json.loads((tmp_path / f"notes-{rank}.json").read_text()) for rank in range(2)]
    batches = settings.ode.steps + sum(2 * getattr(settings, key).steps for key in STAGES[1:])
    assert len(notes[0]["weights"]) == len(set(notes[0]["weights"])) == batches
    assert notes[0]["weights"] == notes[1]["weights"]
    assert notes[0]["exits"] == notes[1]["exits"]
    assert set(notes[0]["exits"]) == {0, 1}
    assert all(own != other for own, other in zip(notes[0]["data"], notes[1]["data"], strict=True))
    load_online(tmp_path)
