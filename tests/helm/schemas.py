"""Strict validation of manifests: built-in kinds by kubernetes-validate, custom ones by CRDs; unknown fields fail."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.37"
ROOT = Path(__file__).resolve().parents[2]
CRD_FILES = {
    ("serving.kserve.io/v1beta1", "InferenceService"): "serving.kserve.io_inferenceservices.yaml",
    ("monitoring.coreos.com/v1", "PodMonitor"): "monitoring.coreos.com_podmonitors.yaml",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "monitoring.coreos.com_prometheusrules.yaml",
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): "trainer.kubeflow.org_trainjobs.yaml",
    ("ray.io/v1", "RayCluster"): "ray.io_rayclusters.yaml",
}


def crd_folder() -> Path | None:
    """Return the folder of the CRDs: `LPM_CRDS`, or `../shared/crds` next to the repository; None if there is none."""
    folder = Path(os.environ.get("LPM_CRDS") or ROOT.parent / "shared" / "crds")
    return folder if folder.is_dir() else None


def is_custom(manifest: dict[str, Any]) -> bool:
    return (manifest["apiVersion"], manifest["kind"]) in CRD_FILES


def check_builtin(manifest: dict[str, Any]) -> None:
    """Validate a kind of Kubernetes itself; one without a schema is an error, not a warning."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def check_custom(manifest: dict[str, Any], folder: Path) -> None:
    """Validate a custom resource against its CRD, rejecting unknown fields."""
    api_version, kind = manifest["apiVersion"], manifest["kind"]
    schema = strict_crd(folder / CRD_FILES[api_version, kind], api_version.rsplit("/", 1)[1])
    jsonschema.Draft7Validator(schema).validate(manifest)


@functools.cache
def strict_crd(path: Path, version: str) -> dict[str, Any]:
    """Return the JSON Schema of one version of a CRD, with undeclared fields rejected in every object."""
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)  # the pure Python loader takes a minute
    schema = next(v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version)
    _harden(schema)
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own, not in the CRD
    return dict(schema)


def _harden(node: dict[str, Any]) -> None:
    open_object = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if "properties" in node and not open_object:
        node["additionalProperties"] = False
    if node.pop("nullable", False) and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
    children: list[Any] = [*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")]
    for child in children:
        if isinstance(child, dict):
            _harden(child)


def documents(text: str) -> list[dict[str, Any]]:
    """Return the non-empty documents of a YAML stream."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def containers(manifests: Iterable[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (pod fields, container) in Pods, Deployments, InferenceServices and RayClusters, init containers too."""
    for manifest in manifests:
        for pod in _pods(manifest):
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                yield pod, container


def _pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Pod":
            return [spec]
        case "Deployment" | "StatefulSet" | "Job":
            return [spec["template"]["spec"]]
        case "InferenceService":
            return [spec["predictor"]]
        case "RayCluster":
            groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
            return [group["template"]["spec"] for group in groups]
    return []


def restricted_findings(manifests: Iterable[dict[str, Any]]) -> list[str]:
    """Return violations of the `restricted` Pod Security Standard, writable roots and floating image tags."""
    findings = []
    for pod, container in containers(manifests):
        where, own = container["name"], container.get("securityContext", {})
        shared = pod.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            findings.append(f"{where}: allowPrivilegeEscalation is not false")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            findings.append(f"{where}: capabilities are not dropped")
        if not (own.get("runAsNonRoot") or shared.get("runAsNonRoot")) or shared.get("runAsUser") == 0:
            findings.append(f"{where}: may run as root")
        if (own.get("seccompProfile") or shared.get("seccompProfile", {})).get("type") != "RuntimeDefault":
            findings.append(f"{where}: no seccomp profile")
        if own.get("readOnlyRootFilesystem") is not True:
            findings.append(f"{where}: writable root file system")
        last = container["image"].rsplit("/", 1)[-1]
        if "@sha256:" not in last and last.partition(":")[2] in ("", "latest"):
            findings.append(f"{where}: image {container['image']} floats")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            findings.append(f"{where}: no memory limit")
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")) or own.get("privileged"):
            findings.append(f"{where}: host access")
        if any("hostPath" in volume for volume in pod.get("volumes", [])):
            findings.append(f"{where}: hostPath volume")
    return findings
