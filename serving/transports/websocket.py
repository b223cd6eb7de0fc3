"""The WebSocket transport and its HTTP application: `/v1/character/stream`, the page, `/healthz`, `/metrics`.

This file only moves bytes; all computation is in `CharacterService`.
"""

import asyncio
import logging
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.config import ServingConfig
from serving.media.fragments import ChunkEncoder
from serving.protocol import STREAM_PATH, ClientMessage, ProtocolError, SessionOpen, pack, parse_client
from serving.service import CharacterService
from serving.transports.access import METRICS, AccessControl
from serving.transports.connection import Connection
from serving.transports.outbox import Outbox

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "web" / "dist"
POLICY_VIOLATION, NORMAL = 1008, 1000
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; "
    "media-src 'self' blob:; connect-src 'self' ws: wss:; img-src 'self' data:; style-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def create_app(service: CharacterService, token: str) -> FastAPI:
    """Create the application of one service; `token` is the session token that clients send."""
    app = FastAPI(title="LPM character", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(stream_router(service, token))

    @app.get(METRICS)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    mount_page(app)
    guard(app, token, service.config)
    return app


def stream_router(service: CharacterService, token: str) -> APIRouter:
    """Create the router of the stream and the health route, to be mounted on any FastAPI application."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> Response:
        state = "ready" if service.ready else "draining" if service.draining else "starting"
        return Response(
            f'{{"status":"{state}"}}', status_code=200 if service.ready else 503, media_type="application/json"
        )

    @router.websocket(STREAM_PATH)
    async def stream(socket: WebSocket) -> None:
        await WebSocketTransport(service, socket, token).run()

    return router


async def page_index() -> FileResponse:
    """Return the page."""
    return FileResponse(PAGE / "index.html")


def mount_page(app: FastAPI) -> None:
    """Serve the built page at `/`; call it last, so that every other route takes precedence."""

    @app.middleware("http")
    async def headers(request: Request, call_next):  # type: ignore[no-untyped-def]
        response = await call_next(request)
        for name, value in _PAGE_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")


def guard(app: FastAPI, token: str, config: ServingConfig) -> None:
    """Require the token on every route but the page's files, health and metrics, and bound request bodies."""
    page = {f"/{path.relative_to(PAGE).as_posix()}" for path in PAGE.rglob("*") if path.is_file()}
    app.add_middleware(
        AccessControl,
        token=token,
        max_body_bytes=config.max_body_bytes,
        open_paths={"/", *page},
        stream_path=STREAM_PATH,
    )


def origin_allowed(socket: WebSocket, allowed: tuple[str, ...]) -> bool:
    """Return whether a browser page of this origin may connect; clients other than browsers send no origin."""
    origin = socket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host")


class WebSocketTransport(Outbox):
    """One WebSocket from its handshake to its end; the outbox is its sending half."""

    def __init__(self, service: CharacterService, socket: WebSocket, token: str) -> None:
        super().__init__()
        self._socket, self._config = socket, service.config
        self._connection = Connection(service, self, token)
        self._early: deque[str | bytes] = deque(maxlen=64)

    def make_encoder(self, size_px: int, start_pts: int) -> ChunkEncoder:
        """Create the fMP4 encoder of a stream that begins at `start_pts` (samples)."""
        return ChunkEncoder(size_px, start_pts=start_pts)

    async def run(self) -> None:
        """Check the origin, start a session and move messages until either side leaves."""
        if not origin_allowed(self._socket, self._config.allowed_origins):
            logger.warning("refused origin %s", self._socket.headers.get("origin"))
            await self._socket.close(POLICY_VIOLATION)  # before accept: the handshake is answered with 403
            return
        await self._socket.accept()
        writer = asyncio.create_task(self._write())
        try:
            if await self._start():
                await self._read()
        except (WebSocketDisconnect, RuntimeError) as lost:
            logger.debug("connection lost: %r", lost)
        finally:
            self._connection.end()
            await asyncio.wait({writer}, timeout=1.0)
            writer.cancel()

    async def _start(self) -> bool:
        """Open or resume a session with the first message; return whether there is one."""
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                message, _ = parse_client(await self._receive())
            if isinstance(message, SessionOpen):
                return await self._open(message)
            await self._connection.start(message)
            return True
        except TimeoutError:
            self._connection.refuse(ProtocolError("start_timeout", "no session.open arrived in time"))
        except ProtocolError as error:
            self._connection.refuse(error)
        return False

    async def _open(self, message: ClientMessage) -> bool:
        """Wait for a slot, and notice when the viewer leaves meanwhile."""
        opening = asyncio.create_task(self._connection.start(message))
        while not opening.done():
            receiving = asyncio.create_task(self._receive())
            await asyncio.wait({opening, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                receiving.cancel()
                await asyncio.wait({receiving})
            if not receiving.cancelled() and receiving.exception() is None:
                self._early.append(receiving.result())  # sent while queued; handled once there is a session
            elif not opening.done():
                opening.cancel()
                await asyncio.wait({opening})
                return False
        opening.result()
        return True

    async def _read(self) -> None:
        while not self._connection.over:
            try:
                message, payload = parse_client(self._early.popleft() if self._early else await self._receive())
            except ProtocolError as error:
                await self._connection.reject(error)
            else:
                await self._connection.receive(message, payload)

    async def _receive(self) -> str | bytes:
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", NORMAL))
        data: str | bytes = event.get("text") or event.get("bytes") or b""
        if len(data) > self._config.max_message_bytes:
            raise ProtocolError(
                "too_big", f"a message has {len(data)} bytes; {self._config.max_message_bytes} is the limit"
            )
        return data

    async def _write(self) -> None:
        """Send queued messages; a viewer that reads nothing for too long is disconnected."""
        try:
            while (item := await self.take()) is not None:
                message, payload = item
                async with asyncio.timeout(self._config.stall_timeout_s):
                    if payload:
                        await self._socket.send_bytes(pack(message, payload))
                    else:
                        await self._socket.send_text(message.model_dump_json(exclude_none=True))
            await self._socket.close(POLICY_VIOLATION if self.overflowed else NORMAL)
        except (TimeoutError, WebSocketDisconnect, RuntimeError) as lost:
            logger.info("viewer lost: %r", lost)
            self.close()
