"""Manifests are strictly valid, restricted, and agree with the code that they monitor or run."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from serving.metrics import Metrics
from tests.helm import schemas

INFRA = schemas.ROOT / "infra"
FILES = sorted(path.relative_to(INFRA).as_posix() for path in INFRA.rglob("*.yaml"))
RULES = INFRA / "monitoring" / "prometheusrule.yaml"


def load(name: str) -> list[dict[str, Any]]:
    return schemas.documents((INFRA / name).read_text())


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (schemas.ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", FILES)
def test_builtin_kinds_are_strictly_valid(name: str) -> None:
    manifests = load(name)
    assert manifests
    for manifest in manifests:
        if not schemas.is_custom(manifest):
            schemas.check_builtin(manifest)


@pytest.mark.parametrize("name", ["ray/raycluster.yaml", "monitoring/prometheusrule.yaml"])
def test_custom_kinds_are_strictly_valid(name: str) -> None:
    folder = schemas.crd_folder()
    if folder is None:
        pytest.skip("no CRDs: set LPM_CRDS to a folder with the CRD files")
    (manifest,) = load(name)
    assert schemas.is_custom(manifest)
    schemas.check_custom(manifest, folder)


def test_pods_are_restricted_and_secrets_are_only_referenced() -> None:
    manifests = [manifest for name in FILES for manifest in load(name)]
    assert len(list(schemas.containers(manifests))) >= 4
    assert schemas.restricted_findings(manifests) == []
    assert "Secret" not in {manifest["kind"] for manifest in manifests}


def test_alerts_use_existing_metrics() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    families = re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(registry).decode(), re.MULTILINE)
    names = {name for name, _ in families}
    names |= {f"{name}_bucket" for name, kind in families if kind == "histogram"}
    expressions = [
        rule["expr"] for group in load("monitoring/prometheusrule.yaml")[0]["spec"]["groups"] for rule in group["rules"]
    ]
    used = {name for expression in expressions for name in re.findall(r"lpm_\w+", expression)}
    assert len(used) >= 6
    assert used <= names


def test_every_alert_has_a_runbook() -> None:
    runbook = (INFRA / "monitoring" / "README.md").read_text()
    for rule in load("monitoring/prometheusrule.yaml")[0]["spec"]["groups"][0]["rules"]:
        named = re.search(r'"(\w+)"$', rule["annotations"]["runbook"])
        assert named
        assert f"| {named[1]} |" in runbook
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": load("monitoring/prometheusrule.yaml")[0]["spec"]["groups"]}))
    result = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_mlflow_server_has_every_option() -> None:
    # Importing MLflow's command line takes longer than all other tests here, so its source is searched instead.
    package = Path(str(importlib.metadata.distribution("mlflow").locate_file("mlflow")))
    files = [*sorted((package / "cli").glob("*.py")), package / "utils" / "cli_args.py"]
    source = "\n".join(path.read_text() for path in files)
    (deployment,) = [manifest for manifest in load("mlflow/mlflow.yaml") if manifest["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"]
    for argument in container["args"]:
        assert re.search(rf'"{argument.partition("=")[0]}["/]', source), argument
    assert 'envvar="MLFLOW_BACKEND_STORE_URI"' in source


def test_ray_versions_agree() -> None:
    (cluster,) = load("ray/raycluster.yaml")
    assert cluster["spec"]["rayVersion"] == pinned("ray")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_pipeline_root_uses_the_secret_of_the_readme() -> None:
    (config,) = load("kfp/kfp-launcher.yaml")
    provider = yaml.safe_load(config["data"]["providers"])["s3"]["default"]
    readme = (INFRA / "kfp" / "README.md").read_text()
    assert f"create secret generic {provider['credentials']['secretRef']['secretName']}" in readme
    assert config["data"]["defaultPipelineRoot"].startswith("s3://lpm-runs/")
