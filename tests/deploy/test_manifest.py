"""The rendered InferenceService: valid against the CRD, restricted, and strict about its arguments."""

from typing import Any

import pytest
import yaml

from components.deploy.manifest import render_inference_service, to_yaml
from tests.helm import schemas

ARGUMENTS: dict[str, Any] = {
    "name": "lpm-online",
    "namespace": "characters",
    "storage_uri": "s3://lpm-models/lpm-online/7",
    "image": "registry.example.com/lpm/serve:0.1.0",
    "model_digest": "0123456789abcdef" * 4,
}


def test_inference_service_is_valid_against_the_crd() -> None:
    folder = schemas.crd_folder()
    if folder is None:
        pytest.skip("no CRDs: set LPM_CRDS to a folder with the CRD files")
    small = render_inference_service(**ARGUMENTS)
    large = render_inference_service(
        **ARGUMENTS,
        lineage={"run-id": "abc", "dataset-digest": "f" * 64},
        resources={"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}},
        gpus=2,
        service_account="lpm",
        min_replicas=2,
        max_replicas=4,
        env={"OMP_NUM_THREADS": "8"},
    )
    for manifest in (small, large):
        schemas.check_custom(manifest, folder)


def test_pod_meets_the_restricted_security_standard() -> None:
    manifest = render_inference_service(**ARGUMENTS)
    assert schemas.restricted_findings([manifest]) == []


def test_container_starts_the_runtime_on_the_mounted_model() -> None:
    predictor = render_inference_service(**ARGUMENTS)["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert container["command"] == ["python", "-m", "serving.runtime"]
    assert container["args"] == ["--model-dir", "/mnt/models", "--drain-s", "870"]
    token = next(entry for entry in container["env"] if entry["name"] == "LPM_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "lpm-session", "key": "LPM_TOKEN", "optional": True}
    assert {"name": "STORAGE_URI", "value": ARGUMENTS["storage_uri"]} in container["env"]
    assert predictor["minReplicas"] >= 1
    assert predictor["timeout"] > 60
    assert predictor["terminationGracePeriodSeconds"] >= 900


def test_annotations_hold_lineage_digest_and_deployment_mode() -> None:
    annotations = render_inference_service(**ARGUMENTS, lineage={"run-id": "abc"})["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["lpm.platform/model-digest"] == ARGUMENTS["model_digest"]
    assert annotations["lpm.platform/run-id"] == "abc"


def test_gpus_become_limits_and_leave_the_defaults_unchanged() -> None:
    def resources(**changes: Any) -> dict[str, Any]:
        manifest = render_inference_service(**{**ARGUMENTS, **changes})
        return dict(manifest["spec"]["predictor"]["containers"][0]["resources"])

    assert resources(gpus=1)["limits"]["nvidia.com/gpu"] == "1"
    slices = {"limits": {"nvidia.com/mig-3g.40gb": "1"}}
    assert resources(resources=slices) == slices
    assert "nvidia.com/gpu" not in resources()["limits"]


def test_yaml_round_trips_without_anchors() -> None:
    manifest = render_inference_service(**ARGUMENTS)
    text = to_yaml(manifest)
    assert yaml.safe_load(text) == manifest
    assert text.startswith("apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n")
    assert "&id" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Online"}, "lower-case"),
        ({"name": "a" * 49}, "at most 48"),
        ({"namespace": ""}, "namespace is ''"),
        ({"storage_uri": "models:/lpm-online@champion"}, "resolve a registry alias"),
        ({"storage_uri": "mlflow://run/1"}, "KServe loads"),
        ({"image": "lpm/serve"}, "name a tag"),
        ({"image": "localhost:5000/lpm/serve"}, "name a tag"),
        ({"image": "lpm/serve:latest"}, "other than 'latest'"),
        ({"model_digest": "abc"}, "64 hex digits"),
        ({"min_replicas": 0}, "at least 1"),
        ({"min_replicas": 3, "max_replicas": 2}, "at least min_replicas"),
        ({"grace_s": 30}, "at least 900"),
        ({"timeout_s": 0}, "longest session"),
        ({"gpus": -1}, "use 0 for CPU"),
        ({"resources": {"limit": {}}}, "only requests and limits"),
        ({"lineage": {"run id": "x"}}, "cannot be an annotation"),
        ({"env": {"STORAGE_URI": "x"}}, "remove it from env"),
    ],
)
def test_invalid_arguments_are_rejected_with_a_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_inference_service(**{**ARGUMENTS, **changes})


@pytest.mark.parametrize(
    "image",
    ["lpm/serve:0.1.0", "localhost:5000/lpm/serve:1", f"lpm/serve@sha256:{'0' * 64}", f"a/b:latest@sha256:{'0' * 64}"],
)
def test_pinned_images_are_accepted(image: str) -> None:
    manifest = render_inference_service(**{**ARGUMENTS, "image": image})
    assert manifest["spec"]["predictor"]["containers"][0]["image"] == image
