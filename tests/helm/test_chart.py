"""The chart renders valid, restricted manifests for every example and rejects invalid values."""

import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from components.deploy.manifest import render_inference_service
from tests.helm import binary, schemas

CHART = schemas.ROOT / "helm" / "lpm"
EXAMPLES = {"default": [], "dev": ["values-dev.yaml"], "cluster": ["values-cluster.yaml"]}


@pytest.fixture(scope="module")
def helm() -> Path:
    try:
        return binary.helm_path()
    except binary.Unavailable as error:
        pytest.skip(str(error))


def run_helm(helm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(helm), *arguments], capture_output=True, text=True, timeout=60, check=False)


def render(helm: Path, example: str = "default", *arguments: str) -> list[dict[str, Any]]:
    files = [word for name in EXAMPLES[example] for word in ("-f", str(CHART / name))]
    result = run_helm(helm, "template", "rel", str(CHART), "--namespace", "characters", *files, *arguments)
    assert result.returncode == 0, result.stderr
    return schemas.documents(result.stdout)


def one(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [m for m in manifests if m["kind"] == kind]
    return found


def kinds(manifests: list[dict[str, Any]]) -> set[str]:
    return {m["kind"] for m in manifests if "helm.sh/hook" not in m["metadata"].get("annotations", {})}


@pytest.mark.parametrize("example", EXAMPLES)
def test_lint_is_clean(helm: Path, example: str) -> None:
    files = [word for name in EXAMPLES[example] for word in ("-f", str(CHART / name))]
    result = run_helm(helm, "lint", "--strict", str(CHART), *files)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[WARNING]" not in result.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_builtin_kinds_are_strictly_valid(helm: Path, example: str) -> None:
    manifests = render(helm, example)
    builtin = [m for m in manifests if not schemas.is_custom(m)]
    assert len(builtin) >= 6
    for manifest in builtin:
        schemas.check_builtin(manifest)  # a kind without a schema raises too


@pytest.mark.parametrize("example", EXAMPLES)
def test_custom_kinds_are_strictly_valid(helm: Path, example: str) -> None:
    folder = schemas.crd_folder()
    if folder is None:
        pytest.skip("no CRDs: set LPM_CRDS to a folder with the CRD files")
    custom = [m for m in render(helm, example) if schemas.is_custom(m)]
    assert bool(custom) == (example != "dev")
    for manifest in custom:
        schemas.check_custom(manifest, folder)


@pytest.mark.parametrize("example", EXAMPLES)
def test_pods_are_restricted(helm: Path, example: str) -> None:
    manifests = render(helm, example)
    assert len(list(schemas.containers(manifests))) >= 2
    assert schemas.restricted_findings(manifests) == []


def test_builtin_schema_check_finds_a_misspelt_field(helm: Path) -> None:
    deployment = one(render(helm, "dev"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="redinessProbe"):
        schemas.check_builtin(deployment)
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        schemas.check_builtin({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}})


def test_crd_schema_check_finds_a_misspelt_field(helm: Path) -> None:
    folder = schemas.crd_folder()
    if folder is None:
        pytest.skip("no CRDs: set LPM_CRDS to a folder with the CRD files")
    service = one(render(helm), "InferenceService")
    service["spec"]["predictor"]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        schemas.check_custom(service, folder)


def test_inference_service_sets_timeout_grace_and_standard_mode(helm: Path) -> None:
    service = one(render(helm), "InferenceService")
    predictor = service["spec"]["predictor"]
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    assert predictor["timeout"] > 60
    assert predictor["minReplicas"] >= 1
    assert predictor["terminationGracePeriodSeconds"] >= 900
    assert "containerConcurrency" not in predictor
    (container,) = predictor["containers"]
    assert container["command"] + container["args"][:2] == [
        *("python", "-m", "serving.runtime"),
        *("--model-dir", "/mnt/models"),
    ]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["STORAGE_URI"] == "s3://lpm-models/lpm-online"


def test_several_replicas_enable_the_autoscaler_and_need_a_token(helm: Path) -> None:
    service = one(render(helm, "default", "--set", "serving.maxReplicas=3,auth.existingSecret=t"), "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    fewer = run_helm(helm, "template", "rel", str(CHART), "--set", "serving.minReplicas=2")
    assert "at least serving.minReplicas (2)" in fewer.stderr
    tokenless = run_helm(helm, "template", "rel", str(CHART), "--set", "serving.maxReplicas=2")
    assert "name a Secret with the session token" in tokenless.stderr


def test_chart_and_deploy_step_render_the_same_inference_service(helm: Path) -> None:
    chart = one(render(helm), "InferenceService")
    app_version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    ours = render_inference_service(
        name="rel-lpm",
        namespace="characters",
        storage_uri="s3://lpm-models/lpm-online",
        image=f"lpm/serve:{app_version}",
        model_digest="ab" * 32,
        service_account="rel-lpm",
        token_secret="",
    )
    left, right = chart["spec"]["predictor"], ours["spec"]["predictor"]
    for key in ("minReplicas", "maxReplicas", "timeout", "terminationGracePeriodSeconds", "securityContext"):
        assert left[key] == right[key], key
    assert left["serviceAccountName"] == right["serviceAccountName"]
    for key in right["containers"][0]:
        assert left["containers"][0][key] == right["containers"][0][key], key
    shared = {k: v for k, v in ours["metadata"]["annotations"].items() if "digest" not in k}
    assert shared.items() <= chart["metadata"]["annotations"].items()


def test_deployment_mode_downloads_the_model(helm: Path) -> None:
    manifests = render(
        helm,
        *("default", "--set", "serving.mode=deployment", "--set", "objectStore.existingSecret=lpm-s3"),
        *("--set", "objectStore.endpoint=http://minio:9000"),
    )
    assert {"Deployment", "Service"} <= kinds(manifests)
    assert "InferenceService" not in kinds(manifests)
    (initializer,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["initContainers"]
    assert initializer["args"] == ["s3://lpm-models/lpm-online", "/mnt/models"]
    environment = {entry["name"]: entry for entry in initializer["env"]}
    assert environment["AWS_ENDPOINT_URL"]["value"] == "http://minio:9000"
    assert environment["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "lpm-s3"
    for manifest in manifests:
        schemas.check_builtin(manifest)


def test_values_become_options_that_the_runtime_has(helm: Path) -> None:
    settings = "serving.maxSessions=3,serving.allowedOrigins={https://a.example},serving.compile=true"
    (container,) = one(render(helm, "default", "--set", settings), "InferenceService")["spec"]["predictor"][
        "containers"
    ]
    assert container["args"] == [
        *(
            "--model-dir",
            "/mnt/models",
            "--drain-s",
            "870",
            "--max-sessions",
            "3",
            "--allow-origin",
            "https://a.example",
            "--compile",
        ),
    ]
    runtime = (schemas.ROOT / "serving" / "runtime.py").read_text()
    for option in (
        "--model-dir",
        "--drain-s",
        "--max-sessions",
        "--allow-origin",
        "--compile",
        "--float8",
        "LPM_TOKEN",
    ):
        assert f'"{option}"' in runtime


def test_claim_is_mounted_without_download(helm: Path) -> None:
    pod = one(render(helm, "dev"), "Deployment")["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    volume = next(v for v in pod["volumes"] if v["name"] == "model")
    assert volume["persistentVolumeClaim"]["claimName"] == "lpm-models"
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "model")
    assert (mount["subPath"], mount["mountPath"], mount["readOnly"]) == ("lpm-online", "/mnt/models", True)


def test_secrets_are_referenced_and_never_created(helm: Path) -> None:
    manifests = render(helm, "cluster", "--set", "serving.existingSecret=tokens", "--set", "serving.env.LOG=debug")
    assert "Secret" not in kinds(manifests)
    assert one(manifests, "ServiceAccount")["secrets"] == [{"name": "lpm-s3"}]
    (container,) = one(manifests, "InferenceService")["spec"]["predictor"]["containers"]
    assert {"secretRef": {"name": "tokens"}} in container["envFrom"]
    config = next(m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "rel-lpm")
    assert config["data"] == {"LOG": "debug"}
    token = next(entry for entry in container["env"] if entry["name"] == "LPM_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "lpm-session", "key": "LPM_TOKEN"}
    assert token in one(manifests, "Pod")["spec"]["containers"][0]["env"]
    assert container["image"].startswith("registry.example.com/lpm/serve@sha256:")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_network_policy_allows_only_listed_traffic(helm: Path) -> None:
    policies = [m for m in render(helm, "cluster") if m["kind"] == "NetworkPolicy"]
    deny = next(p for p in policies if p["metadata"]["name"].endswith("-deny"))
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny["spec"].keys()
    allow = next(p for p in policies if p["metadata"]["name"].endswith("-allow"))
    assert [rule["ports"] for rule in allow["spec"]["ingress"]] == [[{"port": 8080, "protocol": "TCP"}]]
    assert all("to" in rule for rule in allow["spec"]["egress"])


def test_selectors_match_server_pods_and_not_the_test_pod(helm: Path) -> None:
    manifests = render(helm, "cluster")
    labels = one(manifests, "InferenceService")["spec"]["predictor"]["labels"]
    selectors = [one(manifests, k)["spec"]["selector"]["matchLabels"] for k in ("PodDisruptionBudget", "PodMonitor")]
    selectors += [m["spec"]["podSelector"]["matchLabels"] for m in manifests if m["kind"] == "NetworkPolicy"]
    smoke = one(manifests, "Pod")["metadata"]["labels"]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= smoke.items()


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("networkPolicy.enabled", "NetworkPolicy"),
        ("podDisruptionBudget.enabled", "PodDisruptionBudget"),
        ("serviceAccount.create", "ServiceAccount"),
        ("monitoring.podMonitor.enabled", "PodMonitor"),
        ("tests.enabled", "Pod"),
    ],
)
def test_disabled_objects_are_not_rendered(helm: Path, setting: str, kind: str) -> None:
    off = {m["kind"] for m in render(helm, "default", "--set", f"{setting}=false")}
    on = {m["kind"] for m in render(helm, "default", "--set", f"{setting}=true")}
    assert kind not in off
    assert kind in on


def test_old_kubernetes_versions_are_rejected(helm: Path) -> None:
    result = run_helm(helm, "template", "rel", str(CHART), "--kube-version", "1.19.0")
    assert "incompatible with Kubernetes" in result.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("serving.minReplica=2", "minReplica"),
        ("serving.mode=knative", "/serving/mode"),
        ("serving.minReplicas=0", "/serving/minReplicas"),
        ("serving.terminationGracePeriodSeconds=30", "/serving/terminationGracePeriodSeconds"),
        ("image.tag=latest", "/image/tag"),
        ("image.digest=sha256:abc", "/image/digest"),
        ("storageInitializer.tag=latest", "/storageInitializer/tag"),
        ("model.storageUri=models:/lpm-online@champion", "/model/storageUri"),
        ("serving.env.AWS_SECRET_ACCESS_KEY=x", "AWS_SECRET_ACCESS_KEY"),
        ("service.port=70000", "/service/port"),
        ("unknown=1", "unknown"),
    ],
)
def test_schema_rejects_invalid_values(helm: Path, setting: str, message: str) -> None:
    result = run_helm(helm, "template", "rel", str(CHART), "--set", setting)
    assert result.returncode != 0
    assert message in result.stderr


def test_oci_models_need_kserve(helm: Path) -> None:
    arguments = ("template", "rel", str(CHART), "--set", "model.storageUri=oci://registry.example.com/model:1")
    assert run_helm(helm, *arguments).returncode == 0
    assert "/model/storageUri" in run_helm(helm, *arguments, "--set", "serving.mode=deployment").stderr


def test_notes_name_the_next_commands(helm: Path) -> None:
    result = run_helm(helm, "install", "rel", str(CHART), "--dry-run=client", "-n", "characters")
    assert result.returncode == 0, result.stderr
    notes = result.stdout.partition("NOTES:")[2]
    for command in ("kubectl -n characters wait", "helm -n characters test rel", "port-forward"):
        assert command in notes
