"""`lpm doctor` on this machine, and on deliberately broken set-ups."""

import socket
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.doctor import failed_checks, run_checks


def test_checks_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checks = {check.name: check for check in run_checks()}
    assert checks["Python"].state == "ok"
    assert checks["packages [core]"].state == "ok", checks["packages [core]"].found
    assert checks["torch"].found
    assert checks["a model to serve"].state == "optional"
    assert all(check.fix for check in failed_checks(list(checks.values())))


def test_missing_and_outdated_packages_are_reported() -> None:
    from packaging.requirements import Requirement

    assert doctor._problem(Requirement("no-such-package>=1")) == "no-such-package is not installed"
    assert "does not satisfy" in doctor._problem(Requirement("click>=99"))
    assert doctor._problem(Requirement("click>=8")) == ""


def test_endpoints_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        answering = {check.name: check for check in doctor._endpoints()}["MLFLOW_TRACKING_URI"]
    assert (answering.state, answering.fix) == ("ok", "")
    silent = {check.name: check for check in doctor._endpoints()}["MLFLOW_TRACKING_URI"]
    assert silent.state == "missing"
    assert "unset MLFLOW_TRACKING_URI" in silent.fix
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert "no server" in {check.name: check for check in doctor._endpoints()}["MLFLOW_TRACKING_URI"].found


def test_missing_programs_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    checks = {check.name: check for check in doctor._programs()}
    assert checks["node"].state == "optional"
    assert checks["node"].fix
