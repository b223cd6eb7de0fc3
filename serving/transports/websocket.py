"""The HTTP and WebSocket door: `/v1/character/stream`, the page, `/healthz`, `/metrics`; who may come in, and how much.

Only bytes move here. Everything that computes is behind `CharacterService`.
"""

import asyncio
import logging
import secrets
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.outbox import Outbox
from serving.protocol import (
    STREAM_PATH,
    Closed,
    Error,
    Interrupt,
    ProtocolError,
    SessionClose,
    SessionOpen,
    SessionResume,
    TextSpeak,
    pack,
    parse_client,
)
from serving.service import CharacterService, LiveSession

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "web" / "dist"
POLICY_VIOLATION, TOO_BIG, TRY_LATER, NORMAL = 1008, 1009, 1013, 1000
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self'; "
    "media-src 'self' blob:; connect-src 'self' ws: wss:; img-src 'self' data:; style-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def create_app(service: CharacterService, token: str) -> FastAPI:
    """The application of one service; `token` is what `session.open` must show."""
    app = FastAPI(title="LPM character", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(stream_router(service, token))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    mount_page(app)
    return app


def stream_router(service: CharacterService, token: str) -> APIRouter:
    """The stream and the health route, to be mounted on any FastAPI application."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> Response:
        state = "ready" if service.ready else "draining" if service.draining else "starting"
        return Response(
            f'{{"status":"{state}"}}', status_code=200 if service.ready else 503, media_type="application/json"
        )

    @router.websocket(STREAM_PATH)
    async def stream(socket: WebSocket) -> None:
        await Connection(service, socket, token).run()

    return router


async def page_index() -> FileResponse:
    """The page itself."""
    return FileResponse(PAGE / "index.html")


def mount_page(app: FastAPI) -> None:
    """Serve the built page at `/`, last, so that every other route goes first."""

    @app.middleware("http")
    async def headers(request: Request, call_next):  # type: ignore[no-untyped-def]
        response = await call_next(request)
        for name, value in _PAGE_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")


def origin_allowed(socket: WebSocket, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of this origin may connect; clients that are no browsers send no origin."""
    origin = socket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host")


class Connection:
    """One WebSocket from its handshake to its end."""

    def __init__(self, service: CharacterService, socket: WebSocket, token: str) -> None:
        self._service, self._socket, self._token = service, socket, token
        self._config = service.config
        self._outbox = Outbox()
        self._bad_messages = 0
        self._early: deque[str | bytes] = deque(maxlen=64)

    async def run(self) -> None:
        """Check who comes, attach a conversation, move messages until one side leaves."""
        if not origin_allowed(self._socket, self._config.allowed_origins):
            logger.warning("refused origin %s", self._socket.headers.get("origin"))
            await self._socket.close(POLICY_VIOLATION)  # before accept: the handshake is answered with 403
            return
        await self._socket.accept()
        writer = asyncio.create_task(self._write())
        live: LiveSession | None = None
        try:
            live = await self._begin()
            if live is not None:
                await self._read(live)
        except (WebSocketDisconnect, RuntimeError) as gone:
            logger.debug("connection lost: %r", gone)
        finally:
            if live is not None:
                self._service.detach(live, self._outbox)
            self._outbox.close()
            await asyncio.wait({writer}, timeout=1.0)
            writer.cancel()

    async def _begin(self) -> LiveSession | None:
        """The first message opens or resumes a conversation."""
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                message, _ = parse_client(await self._receive())
            if isinstance(message, SessionResume):
                return self._service.resume(message, self._outbox)
            if not isinstance(message, SessionOpen):
                raise ProtocolError("unexpected_message", "the first message must be session.open or session.resume")
            if not secrets.compare_digest((message.token or "").encode(), self._token.encode()):
                raise ProtocolError("unauthorized", "wrong token; use the address that the server printed")
            return await self._open(message)
        except TimeoutError:
            self._refuse(ProtocolError("start_timeout", "no session.open arrived in time"))
        except ProtocolError as error:
            self._refuse(error)
        return None

    async def _open(self, message: SessionOpen) -> LiveSession | None:
        """Wait for a slot, and notice when the visitor leaves meanwhile."""
        opening = asyncio.create_task(self._service.open(message, self._outbox))
        while not opening.done():
            hearing = asyncio.create_task(self._receive())
            await asyncio.wait({opening, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                hearing.cancel()
                await asyncio.wait({hearing})
            if not hearing.cancelled() and hearing.exception() is None:
                self._early.append(hearing.result())  # said while waiting, answered once there is a session
            elif not opening.done():
                opening.cancel()
                await asyncio.wait({opening})
                return None
        return opening.result()

    async def _read(self, live: LiveSession) -> None:
        while not live.core.over:
            try:
                message, payload = parse_client(self._early.popleft() if self._early else await self._receive())
                live.post(live.core.handle(message, payload))
            except ProtocolError as error:
                self._bad_messages += 1
                live.post(live.core.stamp([_error(error)]))
                if self._bad_messages >= self._config.max_bad_messages or error.code == "too_big":
                    await self._service.close(live, "protocol_violation")
                continue
            if isinstance(message, TextSpeak):
                self._service.spoken(live)
            elif isinstance(message, Interrupt):
                self._service.metrics.interruptions.inc()
            elif isinstance(message, SessionClose):
                await self._service.close(live, "client")

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

    def _refuse(self, error: ProtocolError) -> None:
        self._outbox.post([_error(error), Closed(reason=error.code)])
        self._outbox.close()

    async def _write(self) -> None:
        """Send what is posted; a viewer that takes nothing for too long is cut off."""
        try:
            while (item := await self._outbox.take()) is not None:
                message, payload = item
                async with asyncio.timeout(self._config.stall_timeout_s):
                    if payload:
                        await self._socket.send_bytes(pack(message, payload))
                    else:
                        await self._socket.send_text(message.model_dump_json(exclude_none=True))
            await self._socket.close(POLICY_VIOLATION if self._outbox.overflowed else NORMAL)
        except (TimeoutError, WebSocketDisconnect, RuntimeError) as gone:
            logger.info("viewer lost: %r", gone)
            self._outbox.close()


def _error(error: ProtocolError) -> Error:
    retry = 1000 if error.retryable else None
    return Error(
        code=error.code, message=str(error), retryable=error.retryable, retry_after_ms=retry, event_id=error.event_id
    )
