"""A real server on a free loopback port, with a drawn character and a quick voice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.config import ServingConfig
from serving.engine import Engine, FakeEngine
from serving.metrics import Metrics
from serving.server import DrainingServer, uvicorn_config
from serving.service import CharacterService
from serving.transports.websocket import create_app

TOKEN = "a-token-for-tests"


@dataclass
class Running:
    """A running server and its address."""

    url: str
    token: str
    service: CharacterService
    server: DrainingServer


def buzz(samples: int, level: float = 0.3) -> np.ndarray:
    """Return a voice-like buzz, int16 [samples]."""
    time = np.arange(samples) / 24_000
    return (level * 32_000 * np.sign(np.sin(2 * np.pi * 140 * time)) * np.sin(2 * np.pi * 2 * time) ** 2).astype(
        np.int16
    )


def say(text: str, voice: str) -> np.ndarray:
    """Return stand-in speech: 0.1 s of buzz per letter."""
    if voice != "test":
        raise ValueError(f"unknown voice {voice!r}")
    return buzz(2400 * len(text))


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def start() -> Start:
    """Return a function that starts servers: `async with start(config=..., engine=...) as running`."""

    @asynccontextmanager
    async def starting(*, config: ServingConfig | None = None, engine: Engine | None = None) -> AsyncIterator[Running]:
        config = config or ServingConfig()
        metrics = Metrics(CollectorRegistry())
        service = CharacterService(engine or FakeEngine(64), config, metrics, voice=say, voices=("test",))
        answers: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        settings = uvicorn_config(create_app(service, TOKEN), "127.0.0.1", 0, config)
        server = DrainingServer(settings, service, on_ready=answers.set_result)
        running = asyncio.create_task(server.serve())
        port = await asyncio.wait_for(answers, 30)
        try:
            yield Running(url=f"http://127.0.0.1:{port}", token=TOKEN, service=service, server=server)
        finally:
            server.should_exit = True
            await running

    return starting


@pytest.fixture
def voice() -> Callable[..., np.ndarray]:
    """Return a function that makes voice-like samples."""
    return buzz
