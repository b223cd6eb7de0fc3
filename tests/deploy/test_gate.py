"""The rule by which a model becomes champion."""

import pytest

from components.deploy.config import DeployConfig, GateConfig
from components.deploy.gate import decide

OLD = {"sync": 0.6, "listening": 0.5, "identity": 0.98, "psnr_db": 31.0, "drift": 0.9, "speed": 0.5}
RULE = GateConfig()


def test_the_first_model_wins() -> None:
    assert decide(OLD, None, RULE).promoted


def test_a_better_model_wins() -> None:
    assert decide({**OLD, "sync": 0.7}, OLD, RULE).promoted


def test_a_draw_loses() -> None:
    decision = decide(OLD, OLD, RULE)
    assert not decision.promoted
    assert "gains +0.000" in decision.reasons[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"identity": 0.9}, "identity"), ({"psnr_db": 29.0}, "psnr_db"), ({"drift": 0.3}, "drift")],
)
def test_a_gain_bought_with_a_loss_elsewhere_loses(change: dict[str, float], named: str) -> None:
    decision = decide({**OLD, "sync": 0.9, **change}, OLD, RULE)
    assert not decision.promoted
    assert decision.reasons[0].startswith(named)


def test_small_losses_are_tolerated() -> None:
    assert decide({**OLD, "sync": 0.7, "psnr_db": 30.8, "drift": 0.87}, OLD, RULE).promoted


def test_a_score_that_improves_downwards() -> None:
    rule = GateConfig(tolerances={"speed": 0.1})
    assert decide({**OLD, "sync": 0.7, "speed": 0.1}, OLD, rule).promoted
    assert not decide({**OLD, "sync": 0.7, "speed": 0.7}, OLD, rule).promoted


def test_a_missing_score_is_not_promoted() -> None:
    unseen = {name: value for name, value in OLD.items() if name != "listening"}
    assert not decide(unseen, None, RULE).promoted
    assert not decide({**OLD, "sync": float("nan")}, OLD, RULE).promoted
    without_psnr = {name: value for name, value in OLD.items() if name != "psnr_db"}
    assert "psnr_db is missing" in decide({**without_psnr, "sync": 0.9}, OLD, RULE).reasons[0]


def test_a_champion_without_a_score_does_not_stop_anyone() -> None:
    assert decide(OLD, {"sync": 0.5, "identity": 0.9}, RULE).promoted


def test_nonsense_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="primary is empty"):
        GateConfig(primary=())
    with pytest.raises(ValueError, match="negative"):
        GateConfig(tolerances={"sync": -1.0})
    with pytest.raises(ValueError, match="registered name"):
        DeployConfig(model_name="a/b")
