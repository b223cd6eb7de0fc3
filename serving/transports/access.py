"""ASGI middleware that guards every route: a bearer token on all but the open ones, and a bounded request body."""

import re
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEALTH = ("/healthz", "/v2/health/live", "/v2/health/ready")
"""Probes of the platform."""
MODEL_READY = re.compile(r"/v2/models/[^/]+/ready")
METRICS = "/metrics"
"""Scraped by Prometheus without a token: keep it inside the cluster's network."""


class AccessControl:
    """Answers 401 without the token and 413 for too large a body.

    Open without a token are health, readiness, metrics and `open_paths`, each for GET and HEAD only. `stream_path` is a
    WebSocket whose first message carries the token (`Connection.start`).
    """

    def __init__(
        self, app: ASGIApp, *, token: str, max_body_bytes: int, open_paths: Iterable[str], stream_path: str
    ) -> None:
        self._app, self._stream_path = app, stream_path
        self._token = token.encode()
        self._max_body_bytes = max_body_bytes
        self._open_paths = frozenset((*HEALTH, METRICS, *open_paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and not self._allowed_websocket(scope):
            await send({"type": "websocket.close", "code": 1008})  # before accept: answered with 403
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._is_open(scope) and not self._has_token(scope):
            await _error(401, "send the session token as `Authorization: Bearer TOKEN`")(scope, receive, send)
            return
        body = await self._read_body(scope, receive)
        if body is None:
            text = f"the request body is larger than {self._max_body_bytes} bytes: send less"
            await _error(413, text)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _allowed_websocket(self, scope: Scope) -> bool:
        return scope["path"] == self._stream_path or self._has_token(scope)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (path in self._open_paths or bool(MODEL_READY.fullmatch(path)))

    def _has_token(self, scope: Scope) -> bool:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.encode(), self._token)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None as soon as it is known to be too large."""
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._max_body_bytes:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)  # the client is gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that yields the buffered body first, then further messages."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


def _error(status: int, text: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Connection": "close"}
    return JSONResponse({"error": text}, status_code=status, headers=headers)
