"""What a user can set about deployment."""

import re
from dataclasses import dataclass, field

from components.runtime.container_images import SERVE_IMAGE
from components.runtime.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """When a new model takes the champion's place.

    It must not lose more than the tolerance on any score, and its mean over `primary` must gain `minimum_gain`.
    """

    primary: tuple[str, ...] = ("sync", "listening", "identity")
    """Scores (1 = ground truth, 0 = shuffled) whose mean decides."""
    minimum_gain: float = 0.005
    """Smallest gain of that mean."""
    tolerances: dict[str, float] = field(
        default_factory=lambda: {"sync": 0.05, "listening": 0.05, "identity": 0.02, "psnr_db": 0.5, "drift": 0.05}
    )
    """Score -> how much worse than the champion it may be, in the score's unit."""
    lower_is_better: tuple[str, ...] = ("speed",)
    """Scores that improve downwards; all others, drift included, are 1 for the truth."""

    def __post_init__(self) -> None:
        if not self.primary:
            raise ValueError("deploy.gate.primary is empty: name at least one score that decides")
        negative = [name for name, value in self.tolerances.items() if value < 0]
        if negative:
            raise ValueError(f"deploy.gate.tolerances of {', '.join(negative)} is negative: use 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """The KServe InferenceService that is written for a cluster."""

    name: str = "lpm-online"
    """Name of the object."""
    namespace: str = "lpm"
    """Namespace it is applied in."""
    image: str = SERVE_IMAGE
    """Serve image with its tag."""
    storage_prefix: str = "s3://lpm-models"
    """Place that holds the released folders; the address is PREFIX/MODEL_NAME/DIGEST."""
    service_account: str = "lpm-serve"
    """Its secrets open the bucket."""
    gpus: int = 0
    """Devices of one replica."""
    min_replicas: int = 1
    """Replicas kept ready."""
    max_replicas: int = 1
    """Replicas at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployConfig:
    """Everything `deploy` can be told."""

    model_name: str = "lpm-online"
    """Registered name of the model that is served."""
    base_name: str = "lpm-base"
    """Registered name of the model it was distilled from."""
    gate: GateConfig = field(default_factory=GateConfig)
    """When a model becomes champion."""
    service: ServiceConfig = field(default_factory=ServiceConfig)
    """The manifest for a cluster."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        for name in (self.model_name, self.base_name):
            if not re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]*", name):
                raise ValueError(f"registered name {name!r}: use letters, digits, '-', '_' and '.'")
