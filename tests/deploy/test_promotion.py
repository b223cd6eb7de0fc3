"""The promotion rule: when a candidate becomes the champion."""

import pytest

from components.deploy.config import DeployConfig, PromotionConfig
from components.deploy.promotion import decide

OLD = {"sync": 0.6, "listening": 0.5, "identity": 0.98, "psnr_db": 31.0, "drift": 0.9, "speed": 0.5}
RULE = PromotionConfig()


def test_first_model_is_promoted() -> None:
    assert decide(OLD, None, RULE).promoted


def test_better_model_is_promoted() -> None:
    assert decide({**OLD, "sync": 0.7}, OLD, RULE).promoted


def test_equal_model_is_not_promoted() -> None:
    decision = decide(OLD, OLD, RULE)
    assert not decision.promoted
    assert "gains +0.000" in decision.reasons[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"identity": 0.9}, "identity"), ({"psnr_db": 29.0}, "psnr_db"), ({"drift": 0.3}, "drift")],
)
def test_regression_beyond_tolerance_blocks_promotion(change: dict[str, float], named: str) -> None:
    decision = decide({**OLD, "sync": 0.9, **change}, OLD, RULE)
    assert not decision.promoted
    assert decision.reasons[0].startswith(named)


def test_regression_within_tolerance_is_allowed() -> None:
    assert decide({**OLD, "sync": 0.7, "psnr_db": 30.8, "drift": 0.87}, OLD, RULE).promoted


def test_lower_is_better_score_is_compared_downwards() -> None:
    rule = PromotionConfig(tolerances={"speed": 0.1})
    assert decide({**OLD, "sync": 0.7, "speed": 0.1}, OLD, rule).promoted
    assert not decide({**OLD, "sync": 0.7, "speed": 0.7}, OLD, rule).promoted


def test_missing_score_blocks_promotion() -> None:
    unseen = {name: value for name, value in OLD.items() if name != "listening"}
    assert not decide(unseen, None, RULE).promoted
    assert not decide({**OLD, "sync": float("nan")}, OLD, RULE).promoted
    without_psnr = {name: value for name, value in OLD.items() if name != "psnr_db"}
    assert "psnr_db is missing" in decide({**without_psnr, "sync": 0.9}, OLD, RULE).reasons[0]


def test_score_missing_from_champion_is_ignored() -> None:
    assert decide(OLD, {"sync": 0.5, "identity": 0.9}, RULE).promoted


def test_invalid_rules_are_rejected() -> None:
    with pytest.raises(ValueError, match="primary is empty"):
        PromotionConfig(primary=())
    with pytest.raises(ValueError, match="negative"):
        PromotionConfig(tolerances={"sync": -1.0})
    with pytest.raises(ValueError, match="_name is"):
        DeployConfig(model_name="a/b")
