"""What a user can set about distillation."""

from dataclasses import dataclass

from components.runtime.tracking import TrackingConfig
from lpm_model.config import setting
from lpm_model.training.distill.config import Distillation


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(Distillation):
    """The distillation's own settings and where it is recorded."""

    tracking: TrackingConfig = setting(factory=TrackingConfig, help="MLflow.", affects=False)
