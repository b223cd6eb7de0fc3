"""What a user can set about distillation."""

from dataclasses import dataclass, field

from components.runtime.tracking import TrackingConfig
from lpm_model.training.config import Distillation


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(Distillation):
    """The distillation's own settings and where it is recorded."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
