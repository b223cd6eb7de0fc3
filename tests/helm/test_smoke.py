"""The script of `helm test` against the server that the chart starts (with the engine that needs no model)."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "helm" / "lpm" / "files" / "smoke.py"
TOKEN = "smoke-token"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("runtime") / "log"
    command = [sys.executable, "-m", "serving.runtime", "--engine", "fake", "--http-port", str(port)]
    env = {**os.environ, "LPM_TOKEN": TOKEN, "LPM_HOST": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def smoke(*arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "LPM_TOKEN"} | (
        {"LPM_TOKEN": token} if token else {}
    )
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=env, check=False)


def test_smoke_checks_readiness_metadata_and_video(endpoint: str) -> None:
    result = smoke("--timeout-s", "200", "http://127.0.0.1:9", endpoint, token=TOKEN)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "metadata: {'name': 'kserve'" in result.stdout
    assert "received video" in result.stdout
    without = smoke(endpoint)
    assert without.returncode == 0, without.stderr
    assert "the WebSocket upgrades" in without.stdout
    refused = smoke(endpoint, token="wrong")
    assert refused.returncode == 1
    assert "does LPM_TOKEN match" in refused.stderr


def test_smoke_fails_with_the_reason_if_nothing_answers() -> None:
    result = smoke("--timeout-s", "1", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "not ready after 1 s: http://127.0.0.1:9" in result.stderr
