"""The collapse monitor: validation distance, best step, collapse; and the EMA."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lpm_model.training.distill.collapse_monitor import (
    CollapseMonitor,
    HeldOutRollout,
    RolloutComparison,
    compare_rollout,
)
from lpm_model.training.distill.config import CollapseMonitorSettings, OdeStage, OnPolicyStage
from lpm_model.training.distill.roles import ModelRoles
from lpm_model.training.distill.stages import OdeModule
from lpm_model.training.distill.train import distill_online
from lpm_model.training.engine.data import Batch
from lpm_model.training.engine.ema import EMA
from tests.lpm_model import tiny
from tests.lpm_model.training.distill.conftest import ALL_STAGES

TRUTH = tiny.normal(2, 16, 9, 4, 4, seed=4)


def test_validation_distance_of_ground_truth_is_zero() -> None:
    found = compare_rollout(TRUTH, TRUTH)
    assert found.metrics() == pytest.approx({"sync": 1, "motion": 1, "variance": 1, "colour": 0})
    assert found.distance == pytest.approx(0, abs=1e-9)
    assert found.collapse(CollapseMonitorSettings()) == ""


@pytest.mark.parametrize("gain", [0.25, 3.0])
def test_scaled_motion_changes_only_motion(gain: float) -> None:
    mean = TRUTH[:, :, 1:].mean(dim=2, keepdim=True)
    made = torch.cat([TRUTH[:, :, :1], mean + gain * (TRUTH[:, :, 1:] - mean)], dim=2)
    found = compare_rollout(made, TRUTH)
    assert found.motion == pytest.approx(gain**2)
    assert found.sync == pytest.approx(1)
    assert found.colour == pytest.approx(0, abs=1e-6)


def test_shift_changes_colour_and_scale_changes_variance() -> None:
    std = TRUTH.std(dim=(2, 3, 4), keepdim=True)
    shifted, stretched = compare_rollout(TRUTH + 2 * std, TRUTH), compare_rollout(TRUTH * 1.5, TRUTH)
    assert shifted.colour == pytest.approx(2, rel=1e-5)
    assert shifted.variance == pytest.approx(1)
    assert stretched.variance == pytest.approx(2.25)
    reversed_course = compare_rollout(-TRUTH, TRUTH)
    assert reversed_course.sync == pytest.approx(-1)


def test_fast_cells_have_more_weight() -> None:
    truth = 0.1 * TRUTH.clone()
    truth[..., 0, 0] *= 30
    still_lips, still_wall = truth.clone(), truth.clone()
    still_lips[:, :, 1:, 0, 0] = truth[:, :, 1:, 0, 0].mean(dim=2, keepdim=True)
    still_wall[:, :, 1:, 3, 3] = truth[:, :, 1:, 3, 3].mean(dim=2, keepdim=True)
    assert compare_rollout(still_lips, truth).motion < 0.01
    assert compare_rollout(still_wall, truth).motion > 0.99


def comparison_at(distance: float, *, within: bool = True) -> RolloutComparison:
    """Return a comparison with this distance, due to its motion; out of bounds if not `within`."""
    return RolloutComparison(sync=1, motion=math.exp(distance**0.5 if within else distance + 10), variance=1, colour=0)


@pytest.mark.parametrize(
    ("seen", "best_step", "collapsed"),
    [
        ([comparison_at(0.5), comparison_at(0.2), comparison_at(0.3)], 1, False),
        ([comparison_at(0.2), comparison_at(0.3), comparison_at(0.4, within=False)], 0, True),
        ([comparison_at(0.1, within=False), comparison_at(0.9), comparison_at(0.2, within=False)], 1, True),
        (
            [comparison_at(0.3, within=False), comparison_at(0.1, within=False), comparison_at(0.2, within=False)],
            1,
            False,
        ),
    ],
)
def test_monitor_retains_best_step_and_detects_collapse(
    seen: list[RolloutComparison], best_step: int, collapsed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    weight = nn.Parameter(torch.zeros(3))
    average, given = EMA({"w": weight}), iter(seen)
    monitor = CollapseMonitor(average, CollapseMonitorSettings(), lambda: next(given), lambda value: value)
    for step in range(len(seen)):
        with torch.no_grad():
            weight.fill_(step)
        average.update()
        monitor.check("a stage", step)
    assert monitor.best_step == best_step
    assert monitor.collapsed == collapsed
    assert ("a stage collapsed at step 2: motion is" in caplog.text) == collapsed
    monitor.best_weights.copy_to()
    assert torch.equal(weight.detach(), torch.full((3,), float(best_step)))


def test_ema_updates_swaps_and_copies() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = EMA({"w": weight}, decay=0.75)
    average.update()
    with torch.no_grad():
        weight.fill_(5.0)
    average.update()
    with average.swap():
        assert weight.item() == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert weight.item() == 5


def test_held_out_measurement_is_deterministic_and_has_no_side_effects(
    make_roles: Callable[..., ModelRoles], make_batch: Callable[..., Batch]
) -> None:
    roles = make_roles()
    held_out = HeldOutRollout(roles, make_batch(roles))
    before = {name: value.clone() for name, value in roles.online.state_dict().items()}
    assert held_out.measure("student") == held_out.measure("student") != held_out.measure("refiner")
    assert all(torch.equal(value, before[name]) for name, value in roles.online.state_dict().items())


def test_collapse_stops_stage_and_saves_best_step(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[Any] = []
    plain = OdeModule.training_step

    def counted(self: OdeModule, *arguments: Any) -> torch.Tensor:
        steps.append(arguments)
        return plain(self, *arguments)

    monkeypatch.setattr(OdeModule, "training_step", counted)
    watched = replace(ALL_STAGES.collapse_monitor, motion=(0.0, 1e6), variance=(0.0, 1.2), colour=1e9)
    none = OnPolicyStage()
    settings = replace(
        ALL_STAGES, ode=OdeStage(steps=9, learning_rate=0.2), collapse_monitor=watched, on_policy=none, refiner=none,
        off_policy=replace(ALL_STAGES.off_policy, steps=0), long=replace(ALL_STAGES.long, steps=0),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        metrics = distill_online(base, dataset, tmp_path / "a", settings)
    assert 0 < len(steps) < 9
    assert "ODE stage collapsed at step" in caplog.text
    assert "variance is" in caplog.text
    assert metrics["ode_best_step"] < len(steps)
    provenance = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert provenance["metrics"]["ode_best_step"] == metrics["ode_best_step"]
