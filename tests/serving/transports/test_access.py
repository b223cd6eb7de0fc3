"""Access control on a bare ASGI application: token, open routes, body limit, WebSockets."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from serving.transports.access import AccessControl

TOKEN = {"Authorization": "Bearer secret"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body that it received."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def guarded() -> AccessControl:
    return AccessControl(echo, token="secret", max_body_bytes=10, open_paths={"/"}, stream_path="/stream")


def client_of(app: AccessControl) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://lpm")


async def parts(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v2/health/live", "/v2/models/lpm/ready"])
async def test_open_routes_need_no_token_to_be_read(guarded: AccessControl, path: str) -> None:
    async with client_of(guarded) as http:
        assert (await http.get(path)).status_code == 200
        assert (await http.post(path)).status_code == 401


@pytest.mark.parametrize("path", ["/infer", "/healthz/", "/metrics/x", "/v2/models/lpm/unload", "/v2/models/a/b/ready"])
async def test_other_routes_need_the_token(guarded: AccessControl, path: str) -> None:
    async with client_of(guarded) as http:
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Bearer secre"})).status_code == 401
        assert (await http.get(path, headers=TOKEN)).status_code == 200


async def test_bodies_up_to_the_limit_reach_the_application_whole(guarded: AccessControl) -> None:
    async with client_of(guarded) as http:
        assert (await http.post("/infer", content=b"x" * 10, headers=TOKEN)).content == b"x" * 10
        assert (await http.post("/infer", content=parts(4, 6), headers=TOKEN)).content == b"x" * 10


async def test_larger_bodies_are_answered_with_413(guarded: AccessControl) -> None:
    async with client_of(guarded) as http:
        for content in (b"x" * 11, parts(4, 7)):
            answer = await http.post("/infer", content=content, headers=TOKEN)
            assert answer.status_code == 413
            assert "larger than 10 bytes" in answer.json()["error"]


@pytest.mark.parametrize(("path", "headers", "reached"), [("/stream", [], True), ("/other", [], False)])
async def test_only_the_stream_accepts_websockets_without_a_token(path: str, headers: list[Any], reached: bool) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])

    async def send(message: Any) -> None:
        assert message == {"type": "websocket.close", "code": 1008}

    control = AccessControl(app, token="secret", max_body_bytes=10, open_paths=(), stream_path="/stream")
    await control({"type": "websocket", "path": path, "headers": headers}, None, send)
    assert bool(seen) is reached
