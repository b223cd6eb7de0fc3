"""Kubernetes resources of each task. Components do not depend on them; the local runner ignores them."""

from dataclasses import dataclass
from typing import Any

from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResources:
    """Resources of one task."""

    cpu: str = setting("2", help="CPU cores, as a Kubernetes quantity.")
    memory: str = setting("6Gi", help="Memory, as a Kubernetes quantity.")
    gpus: int = setting(0, help="Number of GPUs.")
    gpu_resource: str = setting("nvidia.com/gpu", help="Extended resource of the GPUs.")

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ValueError(f"gpus is {self.gpus}: use 0 or more")

    def kubernetes(self) -> dict[str, dict[str, str]]:
        """Return the `resources` of a container."""
        limits = {"memory": self.memory} | ({self.gpu_resource: str(self.gpus)} if self.gpus else {})
        return {"requests": {"cpu": self.cpu, "memory": self.memory}, "limits": limits}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Resources of every task."""

    ingest: StepResources = setting(factory=StepResources, help="Task ingest.")
    curate: StepResources = setting(factory=StepResources, help="Task curate.")
    train: StepResources = setting(factory=StepResources, help="Task train.")
    distill: StepResources = setting(factory=StepResources, help="Task distill.")
    evaluate: StepResources = setting(factory=StepResources, help="Task evaluate.")
    deploy: StepResources = setting(factory=StepResources, help="Task deploy.")

    def apply(self, task: Any, verb: str) -> None:
        """Set the resources of a task."""
        wanted: StepResources = getattr(self, verb)
        task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
        if wanted.gpus:
            task.set_accelerator_type(wanted.gpu_resource).set_accelerator_limit(wanted.gpus)
