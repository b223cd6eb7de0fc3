"""The KServe model server, really started: routes, token, body limit, drain."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.client import RefusedError, connect
from serving.protocol import Closed, GoingAway, PlaybackFinished

ROOT = Path(__file__).parents[2]
TOKEN = "runtime-test"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
INFER: dict[str, Any] = {"inputs": [{"name": "speak", "datatype": "INT16", "shape": [5000], "data": [900] * 5000}]}


@dataclass
class Runtime:
    """A running server and what it logged, once it has ended."""

    url: str
    http: httpx.AsyncClient
    process: asyncio.subprocess.Process
    log: str = ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_ready(http: httpx.AsyncClient, process: asyncio.subprocess.Process) -> None:
    for _ in range(600):
        assert process.returncode is None, "the server ended before it was ready"
        try:
            if (await http.get("/v2/health/ready")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    raise TimeoutError("the server was not ready within a minute")


@asynccontextmanager
async def running_runtime() -> AsyncIterator[Runtime]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.runtime", "--engine", "fake", "--http-port", str(port), "--model-name", "ana"),
        cwd=ROOT,
        env={**os.environ, "LPM_TOKEN": TOKEN},
        stderr=asyncio.subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        runtime = Runtime(url, http, process)
        try:
            await until_ready(http, process)
            yield runtime
        finally:
            if process.returncode is None:
                process.kill()
            runtime.log = (await process.communicate())[1].decode()


async def test_kserve_routes_and_stream_are_served_by_one_process(voice) -> None:
    async with running_runtime() as runtime:
        http = runtime.http
        metadata = (await http.get("/v2/models/ana", headers=AUTHORIZATION)).json()
        ready = (await http.get("/v2/models/ana/ready")).json()
        rendered = (await http.post("/v2/models/ana/infer", json=INFER, headers=AUTHORIZATION)).json()
        unknown = {**INFER, "parameters": {"character_id": "nobody"}}
        refused = await http.post("/v2/models/ana/infer", json=unknown, headers=AUTHORIZATION)
        page = (await http.get("/")).text
        async with connect(runtime.url, TOKEN) as client:
            await client.append_character("a", voice(8000))
            await client.end_segment("a")
            assert (await client.wait_event(PlaybackFinished)).position_samples == 8000
            metrics = (await http.get("/metrics")).text
            await client.append_character("b", voice(12_000))
            await client.end_segment("b")
            await client.wait(lambda: client.chunks[-1].message.state == "speaking")
            runtime.process.send_signal(signal.SIGTERM)
            await client.wait_event(GoingAway)
            finished = await client.wait_event(PlaybackFinished, count=2)
            await client.wait_event(Closed)
        assert await asyncio.wait_for(runtime.process.wait(), 20) == 0
    assert metadata["name"] == "ana"
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["speak", "listen"]
    assert ready["ready"] is True
    assert rendered["outputs"][0]["shape"] == [8, 128, 128, 3]
    assert refused.status_code == 400
    assert "<video" in page
    assert "lpm_character_sessions_active 1.0" in metrics
    assert (finished.position_samples, finished.interrupted) == (12_000, False)
    assert TOKEN not in runtime.log


async def test_every_kserve_route_needs_the_token_except_health_metrics_and_page() -> None:
    async with running_runtime() as runtime:
        http = runtime.http
        routes = (await http.get("/openapi.json", headers=AUTHORIZATION)).json()["paths"]
        probes = {"/", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/{model_name}/ready"}
        assert probes <= set(routes)
        for route, operations in routes.items():
            path = route.replace("{model_name}", "ana").replace("{model_version}", "1")
            for method in operations:
                answer = await http.request(method, path)
                is_probe = route in probes and method == "get"
                assert answer.status_code == (200 if is_probe else 401), f"{method} {path}"
        for path in ("/page.js", "/index.css", "/microphone-worklet.js"):
            assert (await http.get(path)).status_code == 200
        for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN):
            answer = await http.post("/v2/repository/models/ana/unload", headers={"Authorization": wrong})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert (await http.post("/v2/models/ana/infer", json=INFER)).status_code == 401
        assert (await http.get("/v2/health/ready")).status_code == 200  # nothing was unloaded
        with pytest.raises(RefusedError, match="unauthorized"):
            async with connect(runtime.url, "wrong"):
                pass
        unloaded = await http.post("/v2/repository/models/ana/unload", headers=AUTHORIZATION)
        assert unloaded.status_code == 200


async def test_oversized_request_bodies_are_answered_with_413() -> None:
    async with running_runtime() as runtime:
        # Only the header is sent: the server answers before the body, and a client that keeps sending may miss it.
        reader, writer = await asyncio.open_connection("127.0.0.1", int(runtime.url.rpartition(":")[2]))
        head = f"POST /v2/models/ana/infer HTTP/1.1\r\nHost: lpm\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(f"{head}Content-Length: {17 << 20}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413")
        accepted = await runtime.http.post("/v2/models/ana/infer", json=INFER, headers=AUTHORIZATION)
        assert accepted.status_code == 200


async def test_runtime_names_a_missing_model_folder() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving.runtime", "--model-dir", "nowhere", cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    errors = (await process.communicate())[1].decode()
    assert process.returncode == 2
    assert "nowhere is not a model folder" in errors
