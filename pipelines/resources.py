"""What each task asks of a cluster. Components know nothing of it; the local runner ignores it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResources:
    """Requests of one task."""

    cpu: str = "2"
    """CPU cores, as Kubernetes writes them."""
    memory: str = "6Gi"
    """Memory, as Kubernetes writes it."""
    gpus: int = 0
    """Whole accelerators."""
    gpu_resource: str = "nvidia.com/gpu"
    """Extended resource that counts them."""

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise ValueError(f"resources.gpus is {self.gpus}: use 0 or more")

    def kubernetes(self) -> dict[str, dict[str, str]]:
        """As `resources` of a container."""
        limits = {"memory": self.memory} | ({self.gpu_resource: str(self.gpus)} if self.gpus else {})
        return {"requests": {"cpu": self.cpu, "memory": self.memory}, "limits": limits}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """Requests of every task."""

    ingest: StepResources = field(default_factory=StepResources)
    """Task ingest."""
    curate: StepResources = field(default_factory=StepResources)
    """Task curate."""
    train: StepResources = field(default_factory=StepResources)
    """Task train."""
    distill: StepResources = field(default_factory=StepResources)
    """Task distill."""
    evaluate: StepResources = field(default_factory=StepResources)
    """Task evaluate."""
    deploy: StepResources = field(default_factory=StepResources)
    """Task deploy."""

    def apply(self, task: Any, verb: str) -> None:
        """Put a task's requests on it."""
        wanted: StepResources = getattr(self, verb)
        task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
        if wanted.gpus:
            task.set_accelerator_type(wanted.gpu_resource).set_accelerator_limit(wanted.gpus)
