"""Start and stop a server: engine, service, application, uvicorn; SIGTERM drains before it stops."""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from serving.config import ServingConfig
from serving.engine import Engine, make_engine
from serving.media.audio import Pcm
from serving.metrics import Metrics
from serving.service import CharacterService
from serving.transports.websocket import create_app

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn server that warms up the engine first and drains: the first signal drains, the second stops at once."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: CharacterService,
        *,
        on_ready: Callable[[int], None],
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._service, self._on_ready, self._on_drain = service, on_ready, on_drain
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Warm up the engine before the port answers."""
        self._loop = asyncio.get_running_loop()
        await self._service.start()
        await super().startup(sockets)
        if self.started:
            self._on_ready(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every session before the sockets close."""
        await self._service.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: stop being ready, notify viewers, let speech finish. Second: exit at once."""
        if self._loop is None or self._drain is not None or not self._service.ready:
            super().handle_exit(sig, frame)
            return
        self._on_drain()
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.get_running_loop().create_task(self._drain_then_exit())

    async def _drain_then_exit(self) -> None:
        await self._service.drain("server_shutdown")
        self.should_exit = True


def build_service(
    engine: Engine, config: ServingConfig | None = None, registry: CollectorRegistry | None = None
) -> CharacterService:
    """Build a service with the packaged voices and metrics in `registry` (a new one by default)."""
    from serving.media.tts import voices

    metrics = Metrics(registry or CollectorRegistry())
    return CharacterService(engine, config or ServingConfig(), metrics, voice=_speak, voices=voices())


def uvicorn_config(app: FastAPI, host: str, port: int, config: ServingConfig) -> uvicorn.Config:
    """Configure uvicorn: bounded messages, no compression of video, keep-alive pings."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        workers=1,
        log_level="warning",
        lifespan="off",
        ws_max_size=config.max_message_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        timeout_graceful_shutdown=3,
        server_header=False,
    )


def page_url(host: str, port: int, token: str) -> str:
    """Return the page's address; the token is in the fragment, which browsers never send or log."""
    name = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://{name}:{port}/#token={token}"


def serve_app(
    model_dir: Path | None,
    host: str = "127.0.0.1",
    port: int = 8000,
    engine: str = "lpm",
    token: str | None = None,
    *,
    config: ServingConfig | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a model folder until SIGINT or SIGTERM; blocks.

    Args:
        model_dir: folder of an Online LPM; not needed with the fake engine.
        host: address to listen on.
        port: TCP port to listen on; 0 picks a free one.
        engine: `lpm` or `fake`.
        token: session token that clients send; random by default.
        config: limits and policy.
        on_ready: called with the page's address once the engine is warm and the port answers.

    Raises:
        ValueError: the folder or the engine's name is wrong, or the address cannot be bound.
    """
    config = config or ServingConfig()
    _check_address(host, port)
    token = token or secrets.token_urlsafe(16)
    service = build_service(make_engine(engine, model_dir, config), config)

    def announce(bound_port: int) -> None:
        logger.info("serving %s at %s", service.engine.model_uri, page_url(host, bound_port, "..."))
        if on_ready is not None:
            on_ready(page_url(host, bound_port, token))

    DrainingServer(uvicorn_config(create_app(service, token), host, port, config), service, on_ready=announce).run()


def _check_address(host: str, port: int) -> None:
    """Check before a model is loaded that the address can be bound.

    Raises:
        ValueError: the port is invalid or in use, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is out of range: choose one from 1 to 65535, or 0 for a free one")
    family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ValueError(f"{host}:{port} cannot be bound ({error.strerror}): choose another port") from error


def _speak(text: str, voice: str) -> Pcm:
    from serving.media.tts import synthesize

    return synthesize(text, voice)
