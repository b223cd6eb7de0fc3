"""Who may import whom."""

import pytest

from tests.contract.project import PACKAGES, ROOT, imported_roots, python_files

ARROWS = {
    "lpm_model": {"lpm_model"},
    "serving": {"lpm_model", "serving"},
    "components": {"lpm_model", "serving", "components"},
    "pipelines": set(PACKAGES),
}
NOT_IN_MODEL = {"kfp", "mlflow", "kserve", "ray", "kubernetes", "fastapi", "hydra", "omegaconf", "dvc", "minio"}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows(package: str) -> None:
    files = python_files(package)
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported_roots(path)
        if name in {*PACKAGES, "tests"} - ARROWS[package]
    ]
    assert files
    assert not broken


def test_model_knows_no_platform() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files("lpm_model")
        for name, line in imported_roots(path)
        if name in NOT_IN_MODEL
    ]
    assert not broken
