"""Renders the Kubeflow TrainJob of a training: plain values in, a manifest out. Nothing here connects to a cluster.

The runtime (`torch-distributed` of Kubeflow Trainer) starts one pod per machine and configures the rendezvous of
torchrun.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from components.runtime.pod_security import CONTAINER_SECURITY, POD_SECURITY
from components.train.config import TrainConfig
from lpm_model.config import to_mapping

MOUNT = "/workspace"
"""Mount path of the claim with datasets and models in every pod."""
RUNTIME = "torch-distributed"
"""ClusterTrainingRuntime that Kubeflow Trainer installs."""
_NODE = "node"
"""Name that the runtime gives to the job and to the container of its pods."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")


def render_train_job(
    config: TrainConfig,
    *,
    name: str,
    namespace: str,
    image: str,
    claim: str,
    dataset: str,
    model: str,
    resources: Mapping[str, Mapping[str, str]],
    service_account: str = "",
    runtime: str = RUNTIME,
) -> dict[str, Any]:
    """Render a `trainer.kubeflow.org/v1alpha1` TrainJob that runs `components.runtime.torchrun train` under torchrun.

    Args:
        config: settings of the training; `scale` sets the number of machines and processes.
        name: object name, at most 50 characters.
        namespace: namespace of the object.
        image: train image with a tag other than `latest`, or a digest.
        claim: PersistentVolumeClaim that all pods can write to.
        dataset: folder on the claim that curate wrote.
        model: folder on the claim that receives the model.
        resources: Kubernetes `requests` and `limits` of one machine.
        service_account: service account of the pods; "" = the namespace's default.
        runtime: ClusterTrainingRuntime.

    Raises:
        ValueError: a value that would fail in the cluster.
    """
    for what, value in (("name", name), ("namespace", namespace), ("claim", claim)):
        if not _NAME.fullmatch(value):
            raise ValueError(f"{what} is {value!r}: use at most 50 lower-case letters, digits and '-', a letter first")
    for what, value in (("dataset", dataset), ("model", model)):
        if value.startswith("/") or ".." in value.split("/") or not value:
            raise ValueError(f"{what} is {value!r}: name a folder on the claim, such as runs/one/{what}")
    if image.rpartition("/")[2].partition(":")[2] in ("", "latest"):
        raise ValueError(f"image is {image!r}: name a tag other than 'latest', or a digest (@sha256:...)")
    trainer = {
        "image": image,
        "command": ["torchrun", "-m", "components.runtime.torchrun", "train"],
        "args": [
            *("--dataset", f"{MOUNT}/{dataset}"),
            *("--model", f"{MOUNT}/{model}"),
            *("--config", json.dumps(to_mapping(config), sort_keys=True)),
        ],
        "numNodes": config.scale.nodes,
        "numProcPerNode": config.scale.processes,
        "resourcesPerNode": {kind: dict(amounts) for kind, amounts in resources.items()},
        "env": _environment(config),
    }
    job = {"name": _NODE, "template": {"spec": {"template": {"spec": _pod(claim, service_account)}}}}
    patch = {"manager": "lpm.platform/cli", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "lpm"}},
        "spec": {"runtimeRef": {"name": runtime}, "trainer": trainer, "runtimePatches": [patch]},
    }


def _environment(config: TrainConfig) -> list[dict[str, str]]:
    values = {"HOME": "/tmp"}
    if not config.tracking.uri:  # without a server, the database is stored next to the models
        values["MLFLOW_TRACKING_URI"] = f"sqlite:///{MOUNT}/mlflow.db"
    return [{"name": key, "value": value} for key, value in values.items()]


def _pod(claim: str, service_account: str) -> dict[str, Any]:
    """Additions to the runtime's pod: the claim, shared memory, restricted security contexts."""
    fields: dict[str, Any] = {
        "securityContext": POD_SECURITY,
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
        "containers": [
            {
                "name": _NODE,
                "securityContext": CONTAINER_SECURITY,
                "volumeMounts": [
                    {"name": "workspace", "mountPath": MOUNT},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
    }
    return {"serviceAccountName": service_account, **fields} if service_account else fields
