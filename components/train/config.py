"""Settings of the train step."""

from dataclasses import dataclass

from components.runtime.tracking import TrackingConfig
from lpm_model.config import setting
from lpm_model.training.base.config import BaseTraining


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(BaseTraining):
    """Settings of the training and of its MLflow run."""

    tracking: TrackingConfig = setting(factory=TrackingConfig, help="MLflow.", affects=False)
