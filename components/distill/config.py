"""Settings of the distill step."""

from dataclasses import dataclass

from components.runtime.tracking import TrackingConfig
from lpm_model.config import setting
from lpm_model.training.distill.config import Distillation


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(Distillation):
    """Settings of the distillation and of its MLflow run."""

    tracking: TrackingConfig = setting(factory=TrackingConfig, help="MLflow.", affects=False)
