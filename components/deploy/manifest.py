"""Render the KServe InferenceService of one released model as a dict or as YAML text.

Nothing here talks to a cluster. `helm/lpm` renders the same object from its values; a test compares the two.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from components.runtime.pod_security import CONTAINER_SECURITY, POD_SECURITY

MODEL_DIR = "/mnt/models"
"""Where KServe's storage initializer leaves the model folder."""
PORT = 8080
"""HTTP and WebSocket port of `serving.runtime`."""
ANNOTATION_PREFIX = "lpm.platform/"
"""Prefix of our annotations (lineage, digest)."""
MIN_GRACE_S = 900
"""Grace period in which a terminating pod finishes its live sessions; a shorter one interrupts calls."""
STORAGE_SCHEMES = ("s3://", "gs://", "https://", "hf://", "pvc://", "oci://")

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_ANNOTATION = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DEFAULT_RESOURCES: dict[str, dict[str, str]] = {
    "requests": {"cpu": "2", "memory": "4Gi"},
    "limits": {"memory": "4Gi"},
}


def render_inference_service(
    *,
    name: str,
    namespace: str,
    storage_uri: str,
    image: str,
    model_digest: str,
    lineage: Mapping[str, str] | None = None,
    resources: Mapping[str, Mapping[str, str]] | None = None,
    gpus: int = 0,
    service_account: str = "",
    token_secret: str = "lpm-session",
    min_replicas: int = 1,
    max_replicas: int = 1,
    timeout_s: int = 3600,
    grace_s: int = MIN_GRACE_S,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Render a `serving.kserve.io/v1beta1` InferenceService that runs `python -m serving.runtime`.

    Args:
        name: object name, at most 48 characters, because KServe derives longer ones.
        namespace: namespace of the object.
        storage_uri: immutable address of the model folder, not an alias.
        image: serve image with a tag other than `latest`, or a digest.
        model_digest: hex SHA-256 of the model folder.
        lineage: further annotations (`run-id`, `code-commit`, ...); keys get our prefix.
        resources: Kubernetes `requests` and `limits`; the default suits the tiny profile on CPU.
        gpus: whole NVIDIA devices a replica needs; name other devices in `resources`.
        service_account: its secrets grant access to the bucket; "" = the namespace's default.
        token_secret: Secret with the session token in key LPM_TOKEN, needed by several replicas; "" = none.
        min_replicas: at least 1: a WebSocket upgrade without an endpoint is refused with 403.
        max_replicas: no fewer than `min_replicas`.
        timeout_s: longest session (s), the route's request timeout (60 s by default).
        grace_s: time (s) a terminating pod has to finish its sessions.
        env: plain settings of the container; never secrets.

    Raises:
        ValueError: a value that would fail or mislead in the cluster; the message says what to write instead.
    """
    _check_names(name, namespace, storage_uri, image, model_digest)
    _check_numbers(min_replicas, max_replicas, timeout_s, grace_s, gpus)
    container = {
        "image": image,
        # Draining ends as soon as no session is left; the rest of the grace period is for closing.
        "args": ["--model-dir", MODEL_DIR, "--drain-s", str(grace_s - 30)],
        "env": _environment(storage_uri, token_secret, env or {}),
        "resources": _resources(resources, gpus),
    }
    scaling = {"minReplicas": min_replicas, "maxReplicas": max_replicas, "timeout": timeout_s}
    pod = _pod(service_account, grace_s) | {"containers": [_container_constants() | container]}
    annotations = _annotations(storage_uri, model_digest, lineage or {}, scales=min_replicas < max_replicas)
    labels = {"app.kubernetes.io/name": "lpm", "app.kubernetes.io/instance": name}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {"predictor": scaling | pod},
    }


def to_yaml(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as YAML text for `kubectl apply -f`, with keys in their given order."""
    return yaml.dump(dict(manifest), Dumper=_Plain, sort_keys=False, width=120)


class _Plain(yaml.SafeDumper):
    """Dumper that writes repeated parts in full instead of as YAML anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _environment(storage_uri: str, token_secret: str, env: Mapping[str, str]) -> list[dict[str, Any]]:
    # KServe's webhook reads STORAGE_URI, downloads to MODEL_DIR before start, and puts MODEL_DIR in its place.
    reserved = {"STORAGE_URI": storage_uri, "PROTOCOL": "v2", "HOME": "/tmp"}
    clash = sorted((reserved.keys() | {"LPM_TOKEN"}) & env.keys())
    if clash:
        raise ValueError(f"env may not set {', '.join(clash)}: the manifest sets it; remove it from env")
    entries: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in {**reserved, **env}.items()]
    if token_secret:
        reference = {"name": token_secret, "key": "LPM_TOKEN", "optional": True}
        entries.append({"name": "LPM_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return entries


def _container_constants() -> dict[str, Any]:
    ready = {"httpGet": {"path": "/v2/health/ready", "port": PORT}}
    return {
        "name": "kserve-container",
        "command": ["python", "-m", "serving.runtime"],
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 120, "timeoutSeconds": 5},
        "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2, "timeoutSeconds": 5},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": PORT},
            "periodSeconds": 10,
            "failureThreshold": 6,
            "timeoutSeconds": 5,
        },
        # The pod leaves the route before the server starts draining.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _pod(service_account: str, grace_s: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_s,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return {"serviceAccountName": service_account, **fields} if service_account else fields


def _resources(resources: Mapping[str, Mapping[str, str]] | None, gpus: int) -> dict[str, dict[str, str]]:
    merged = {kind: dict(amounts) for kind, amounts in (resources or _DEFAULT_RESOURCES).items()}
    unknown = sorted(merged.keys() - {"requests", "limits"})
    if unknown:
        raise ValueError(f"resources has {', '.join(unknown)}: only requests and limits exist")
    if gpus:
        merged.setdefault("limits", {})["nvidia.com/gpu"] = str(gpus)
    return merged


def _annotations(storage_uri: str, model_digest: str, lineage: Mapping[str, str], *, scales: bool) -> dict[str, str]:
    annotations = {
        "serving.kserve.io/deploymentMode": "Standard",  # Knative cuts WebSockets
        "serving.kserve.io/autoscalerClass": "hpa" if scales else "none",
        f"{ANNOTATION_PREFIX}model-digest": model_digest,
        f"{ANNOTATION_PREFIX}storage-uri": storage_uri,
    }
    for key, value in lineage.items():
        if not _ANNOTATION.fullmatch(key):
            raise ValueError(
                f"lineage key {key!r} cannot be an annotation: use letters, digits, '-', '_' and '.', at most 63"
            )
        annotations[f"{ANNOTATION_PREFIX}{key}"] = str(value)
    return annotations


def _check_names(name: str, namespace: str, storage_uri: str, image: str, model_digest: str) -> None:
    for what, value in (("name", name), ("namespace", namespace)):
        if not _NAME.fullmatch(value) or len(value) > 48:
            raise ValueError(
                f"{what} is {value!r}: use at most 48 lower-case letters, digits and '-', beginning with a letter"
            )
    if not storage_uri.startswith(STORAGE_SCHEMES):
        raise ValueError(
            f"storage_uri is {storage_uri!r}: KServe loads {', '.join(STORAGE_SCHEMES)} only; "
            "resolve a registry alias to the folder's address first"
        )
    last = image.rsplit("/", 1)[-1]
    tag = last.split("@", 1)[0].partition(":")[2]
    if not image or ("@sha256:" not in last and tag in ("", "latest")):
        raise ValueError(f"image is {image!r}: name a tag other than 'latest', or a digest (@sha256:...)")
    if not _DIGEST.fullmatch(model_digest):
        raise ValueError(f"model_digest is {model_digest!r}: give the 64 hex digits of the model folder's SHA-256")


def _check_numbers(min_replicas: int, max_replicas: int, timeout_s: int, grace_s: int, gpus: int) -> None:
    if min_replicas < 1:
        raise ValueError(f"min_replicas is {min_replicas}: keep at least 1, live sessions cannot wait for a cold start")
    if max_replicas < min_replicas:
        raise ValueError(f"max_replicas is {max_replicas}: it must be at least min_replicas ({min_replicas})")
    if timeout_s < 1:
        raise ValueError(f"timeout_s is {timeout_s}: give the longest session in seconds, for example 3600")
    if grace_s < MIN_GRACE_S:
        raise ValueError(f"grace_s is {grace_s}: give live sessions at least {MIN_GRACE_S} s to end")
    if gpus < 0:
        raise ValueError(f"gpus is {gpus}: use 0 for CPU or a positive number of devices")
