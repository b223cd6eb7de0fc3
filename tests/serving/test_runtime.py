"""The kserve model server, really started."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx

from serving.client import connect
from serving.protocol import Closed, GoingAway, PlaybackFinished

ROOT = Path(__file__).parents[2]


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


async def test_the_stream_runs_inside_kserve(voice) -> None:
    port, token = free_port(), "runtime-test"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.runtime", "--engine", "fake", "--http-port", str(port), "--model-name", "ana"),
        cwd=ROOT,
        env={**os.environ, "LPM_TOKEN": token},
        stderr=asyncio.subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        try:
            await until_ready(http, process)
            metadata = (await http.get("/v2/models/ana")).json()
            ready = (await http.get("/v2/models/ana/ready")).json()
            request = {"inputs": [{"name": "speak", "datatype": "INT16", "shape": [5000], "data": [900] * 5000}]}
            rendered = (await http.post("/v2/models/ana/infer", json=request)).json()
            refused = await http.post(
                "/v2/models/ana/infer", json={**request, "parameters": {"character_id": "nobody"}}
            )
            page = (await http.get("/")).text
            async with connect(url, token) as client:
                await client.append_character("a", voice(8000))
                await client.end_segment("a")
                assert (await client.wait_event(PlaybackFinished)).position_samples == 8000
                metrics = (await http.get("/metrics")).text
                await client.append_character("b", voice(12_000))
                await client.end_segment("b")
                await client.wait(lambda: client.shown[-1].message.state == "speaking")
                process.send_signal(signal.SIGTERM)
                await client.wait_event(GoingAway)
                finished = await client.wait_event(PlaybackFinished, count=2)
                await client.wait_event(Closed)
            assert await asyncio.wait_for(process.wait(), 20) == 0
        finally:
            if process.returncode is None:
                process.kill()
            errors = (await process.communicate())[1].decode()
    assert metadata["name"] == "ana"
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["speak", "listen"]
    assert ready["ready"] is True
    assert rendered["outputs"][0]["shape"] == [8, 128, 128, 3]
    assert refused.status_code == 400
    assert "<video" in page
    assert "lpm_character_sessions_active 1.0" in metrics
    assert (finished.position_samples, finished.interrupted) == (12_000, False)
    assert token not in errors


async def test_a_missing_model_is_named() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving.runtime", "--model-dir", "nowhere", cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    errors = (await process.communicate())[1].decode()
    assert process.returncode == 2
    assert "nowhere is no model folder" in errors
