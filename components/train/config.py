"""What a user can set about training Base LPM."""

from dataclasses import dataclass

from components.runtime.tracking import TrackingConfig
from lpm_model.config import setting
from lpm_model.training.base.config import BaseTraining


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(BaseTraining):
    """The training's own settings and where it is recorded."""

    tracking: TrackingConfig = setting(factory=TrackingConfig, help="MLflow.", affects=False)
