"""What each task asks of a cluster. Components know nothing of it; the local runner ignores it."""

from dataclasses import dataclass
from typing import Any

from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResources:
    """Requests of one task."""

    cpu: str = setting("2", help="CPU cores, as Kubernetes writes them.")
    memory: str = setting("6Gi", help="Memory, as Kubernetes writes it.")
    gpus: int = setting(0, help="Whole accelerators.")
    gpu_resource: str = setting("nvidia.com/gpu", help="Extended resource that counts them.")

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ValueError(f"gpus is {self.gpus}: use 0 or more")

    def kubernetes(self) -> dict[str, dict[str, str]]:
        """As `resources` of a container."""
        limits = {"memory": self.memory} | ({self.gpu_resource: str(self.gpus)} if self.gpus else {})
        return {"requests": {"cpu": self.cpu, "memory": self.memory}, "limits": limits}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Requests of every task."""

    ingest: StepResources = setting(factory=StepResources, help="Task ingest.")
    curate: StepResources = setting(factory=StepResources, help="Task curate.")
    train: StepResources = setting(factory=StepResources, help="Task train.")
    distill: StepResources = setting(factory=StepResources, help="Task distill.")
    evaluate: StepResources = setting(factory=StepResources, help="Task evaluate.")
    deploy: StepResources = setting(factory=StepResources, help="Task deploy.")

    def apply(self, task: Any, verb: str) -> None:
        """Put a task's requests on it."""
        wanted: StepResources = getattr(self, verb)
        task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
        if wanted.gpus:
            task.set_accelerator_type(wanted.gpu_resource).set_accelerator_limit(wanted.gpus)
