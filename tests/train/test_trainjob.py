"""The TrainJob is strictly valid, reflects the config, and rejects what would fail in the cluster."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.train.config import TrainConfig
from components.train.trainjob import render_train_job
from lpm_model.config import from_mapping
from pipelines.cli import cli
from pipelines.config import load_config
from tests.helm import schemas

PLACE: dict[str, Any] = {
    "name": "lpm-train",
    "namespace": "training",
    "image": "registry.example.com/lpm/train:0.1.0",
    "claim": "lpm-workspace",
    "dataset": "runs/one/dataset",
    "model": "runs/one/base",
}


def render(profile: str, **changes: Any) -> dict[str, Any]:
    config = load_config([f"profile={profile}"])
    return render_train_job(config.train, resources=config.resources.train.kubernetes(), **{**PLACE, **changes})


@pytest.mark.parametrize("profile", ["tiny", "small", "17b"])
def test_train_job_is_valid_against_the_crd(profile: str) -> None:
    folder = schemas.crd_folder()
    if folder is None:
        pytest.skip("no CRDs: set LPM_CRDS to a folder with the CRD files")
    schemas.check_custom(render(profile), folder)
    schemas.check_custom(render(profile, service_account="lpm"), folder)


def test_train_job_reflects_the_config() -> None:
    trainer = render("17b")["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (1, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "1024Gi", "nvidia.com/gpu": "8"}
    words = dict(zip(trainer["args"][::2], trainer["args"][1::2], strict=True))
    assert words["--dataset"] == "/workspace/runs/one/dataset"
    assert from_mapping(TrainConfig, json.loads(words["--config"])) == load_config(["profile=17b"]).train


def test_train_job_pod_is_restricted() -> None:
    (patch,) = render("small")["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["name"], container["name"]) == ("node", "node")
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]} == {"workspace", "tmp", "shm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Train"}, "lower-case"),
        ({"claim": ""}, "claim is ''"),
        ({"dataset": "/data"}, "a folder on the claim"),
        ({"model": "../base"}, "a folder on the claim"),
        ({"image": "lpm/train:latest"}, "other than 'latest'"),
    ],
)
def test_invalid_train_job_values_are_rejected_with_a_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render("tiny", **changes)


def test_trainjob_command_writes_the_manifest(tmp_path: Path) -> None:
    out = tmp_path / "job.yaml"
    words = ["trainjob", "profile=17b", "train.scale.nodes=2", "train.accumulate=4", "--out", str(out)]
    cli.main(args=[*words, "--registry", "registry.example.com/team/"], standalone_mode=False)
    trainer = yaml.safe_load(out.read_text())["spec"]["trainer"]
    assert trainer["numNodes"] == 2
    assert trainer["image"].startswith("registry.example.com/team/lpm/train:")
