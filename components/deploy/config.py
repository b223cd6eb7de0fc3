"""Options of the deploy step."""

import re
from dataclasses import dataclass

from components.runtime.container_images import SERVE_IMAGE
from components.runtime.tracking import TrackingConfig
from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionConfig:
    """The rule for replacing the champion with a new model.

    No score may drop by more than its tolerance, and the mean over `primary` must rise by at least `minimum_gain`.
    """

    primary: tuple[str, ...] = setting(
        ("sync", "listening", "identity"),
        help="Scores (1 = ground truth, 0 = shuffled) whose mean decides on promotion.",
    )
    minimum_gain: float = setting(0.005, help="Smallest increase of the mean of `primary` for a promotion.")
    tolerances: dict[str, float] = setting(
        factory=lambda: {"sync": 0.05, "listening": 0.05, "identity": 0.02, "psnr_db": 0.5, "drift": 0.05},
        help="Score -> largest allowed regression from the champion, in the score's unit.",
    )
    lower_is_better: tuple[str, ...] = setting(
        ("speed",), help="Scores for which lower is better; all others, drift included, are 1 for the ground truth."
    )

    def __post_init__(self) -> None:
        if not self.primary:
            raise ValueError("deploy.promotion.primary is empty: name at least one score that decides")
        negative = [name for name, value in self.tolerances.items() if value < 0]
        if negative:
            raise ValueError(f"deploy.promotion.tolerances of {', '.join(negative)} is negative: use 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """The KServe InferenceService that is written for a cluster."""

    name: str = setting("lpm-online", help="Name of the object.")
    namespace: str = setting("lpm", help="Namespace it is applied in.")
    image: str = setting(SERVE_IMAGE, help="Serve image with its tag.")
    storage_prefix: str = setting(
        "s3://lpm-models", help="Bucket prefix of released models; the address is PREFIX/MODEL_NAME/DIGEST."
    )
    service_account: str = setting("lpm-serve", help="Service account whose secrets give access to the bucket.")
    gpus: int = setting(0, help="GPUs per replica.")
    min_replicas: int = setting(1, help="Smallest number of replicas.")
    max_replicas: int = setting(1, help="Largest number of replicas.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployConfig:
    """Options of the deploy step."""

    model_name: str = setting("lpm-online", help="Registered name of the served model.")
    base_name: str = setting("lpm-base", help="Registered name of the model it was distilled from.")
    promotion: PromotionConfig = setting(factory=PromotionConfig, help="Rule for becoming the champion.")
    service: ServiceConfig = setting(factory=ServiceConfig, help="InferenceService for a cluster.")
    tracking: TrackingConfig = setting(factory=TrackingConfig, help="MLflow.", affects=False)

    def __post_init__(self) -> None:
        for key in ("model_name", "base_name"):
            name = getattr(self, key)
            if not re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]*", name):
                raise ValueError(f"{key} is {name!r}: use letters, digits, '-', '_' and '.'")
