"""The live endpoint inside the KServe model server: what an InferenceService starts.

`python -m serving.runtime --model-dir DIR` builds kserve's model, data plane and REST application, mounts the stream
and the page on it, and runs it on its own uvicorn server (kserve's binds every interface). v2 health, readiness,
metadata and a unary `infer` that renders offline are served next to the stream. All of it but health, metrics and the
page needs the session token. One worker: the model has one owner.
"""

import argparse
import asyncio
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.model_repository import ModelRepository
from kserve.model_server import app as kserve_app
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from kserve.utils.utils import generate_uuid
from prometheus_client import REGISTRY

from lpm_model.config import AUDIO_RATE
from serving.config import ServingConfig
from serving.engine import make_engine
from serving.media.audio import Pcm
from serving.server import DrainingServer, build_service, page_url, uvicorn_config
from serving.service import CharacterService
from serving.transports.websocket import guard, mount_page, page_index, stream_router

logger = logging.getLogger(__name__)

MAX_RENDER_S = 30
"""Longest conversation that a unary `infer` renders."""


class CharacterModel(Model):  # type: ignore[misc]
    """The service as a KServe model: readiness, metadata and offline rendering."""

    def __init__(self, name: str, service: CharacterService) -> None:
        super().__init__(name)
        self._service = service

    def load(self) -> bool:
        """Report readiness; the engine itself is loaded with the process."""
        self.ready = self._service.ready
        return bool(self.ready)

    async def healthy(self) -> bool:
        """Return whether new conversations are accepted."""
        return self._service.ready

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the two voices of an offline conversation."""
        return [{"name": name, "datatype": "INT16", "shape": [-1]} for name in ("speak", "listen")]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the video of an offline conversation."""
        size = self._service.engine.size_px
        return [{"name": "video", "datatype": "UINT8", "shape": [-1, size, size, 3]}]

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Render a short conversation: inputs speak and listen (INT16 at 24 kHz), output video (UINT8)."""
        voices = {tensor.name: tensor for tensor in payload.inputs}
        speak = _samples(voices.get("speak"))
        listen = _samples(voices.get("listen"))
        character = str((payload.parameters or {}).get("character_id") or self._service.engine.characters()[0])
        try:
            self._service.engine.card(character)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        video = await self._service.compute(_render, self._service, character, speak, listen)
        output = InferOutput(name="video", shape=list(video.shape), datatype="UINT8")
        output.set_data_from_numpy(video, binary_data=False)
        return InferResponse(response_id=payload.id or generate_uuid(), model_name=self.name, infer_outputs=[output])


class CharacterDataPlane(DataPlane):  # type: ignore[misc]
    """A data plane that stops being ready when the server drains, so that the pod leaves the endpoints."""

    def __init__(self, registry: ModelRepository, service: CharacterService) -> None:
        super().__init__(model_registry=registry)
        self._service = service

    async def ready(self) -> bool:
        """Return whether new conversations are accepted."""
        return self._service.ready


def _samples(tensor: InferInput | None) -> Pcm:
    if tensor is None:
        return np.zeros(0, np.int16)
    samples = np.asarray(tensor.as_numpy()).reshape(-1)
    if samples.dtype != np.int16 or samples.size > MAX_RENDER_S * AUDIO_RATE:
        raise InvalidInput(f"{tensor.name} must be INT16 at 24 kHz of at most {MAX_RENDER_S} s; got {samples.dtype}")
    return samples


def _render(service: CharacterService, character: str, speak: Pcm, listen: Pcm) -> Any:
    """Render all frames of a conversation, uint8 [T, H, W, 3]."""
    engine = service.engine
    chunks = max(1, -(-max(speak.size, listen.size) // engine.chunk_samples))
    total = chunks * engine.chunk_samples + engine.lookahead_samples
    speak, listen = (np.pad(voice, (0, max(0, total - voice.size))) for voice in (speak, listen))
    session = engine.open(character, 0)
    frames = []
    for start in range(0, chunks * engine.chunk_samples, engine.chunk_samples):
        window = slice(start, start + engine.chunk_samples + engine.lookahead_samples)
        frames.append(session.step(speak[window], listen[window], ""))
    frames.append(session.flush())
    session.close()
    return np.concatenate(frames)


def build(name: str, service: CharacterService, token: str) -> Any:
    """Build kserve's FastAPI application with our routes ahead of its own."""
    repository = ModelRepository()
    model = CharacterModel(name, service)
    repository.update(model)
    plane = CharacterDataPlane(repository, service)
    kserve_app.include_router(stream_router(service, token))
    # kserve answers "/" with its liveness; here "/" is the page, and /v2/health/live remains for probes.
    kserve_app.add_api_route("/", page_index)
    rest = RESTServer("kserve.model_server:app", plane, ModelRepositoryExtension(repository), http_port=0)
    rest.create_application()
    mount_page(kserve_app)
    guard(kserve_app, token, service.config)
    return kserve_app


def default_host() -> str:
    """Return LPM_HOST, else every interface inside a Kubernetes pod, else loopback."""
    return os.environ.get("LPM_HOST") or ("0.0.0.0" if "KUBERNETES_SERVICE_HOST" in os.environ else "127.0.0.1")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m serving.runtime", description=__doc__)
    parser.add_argument("--model-dir", type=Path, help="folder of an Online LPM")
    parser.add_argument("--model-name", default="lpm", help="name under /v2/models")
    parser.add_argument("--engine", choices=("lpm", "fake"), default="lpm", help="fake needs no model")
    parser.add_argument("--host", default=default_host(), help="address to listen on; LPM_HOST sets the default")
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument(
        "--token", default=os.environ.get("LPM_TOKEN"), help="session token; defaults to LPM_TOKEN, else random"
    )
    parser.add_argument("--max-sessions", type=int, default=1)
    parser.add_argument("--drain-s", type=float, default=30.0, help="time for running segments to finish after SIGTERM")
    parser.add_argument("--allow-origin", action="append", default=[], help="browser origin to allow; repeatable")
    parser.add_argument("--allow-missing-consent", action="store_true", help="serve characters without consent_ref")
    parser.add_argument("--float8", action="store_true", help="FP8 matmuls: faster on a GPU, slightly less exact")
    parser.add_argument(
        "--compile", action="store_true", help="compiled blocks and CUDA graphs: slower start, faster chunks"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)  # it logs two lines per probe
    token = given.token or secrets.token_urlsafe(16)
    try:
        config = ServingConfig(
            max_sessions=given.max_sessions,
            drain_s=given.drain_s,
            allowed_origins=tuple(given.allow_origin),
            require_consent=not given.allow_missing_consent,
            float8=given.float8,
            compile=given.compile,
        )
        engine = make_engine(given.engine, given.model_dir, config)
    except ValueError as error:
        logger.error("%s", error)
        return 2
    service = build_service(engine, config, REGISTRY)
    app = build(given.model_name, service, token)
    shown = token if not given.token else "..."  # a configured token is a secret

    def announce(port: int) -> None:
        logger.info("model %s ready at %s", given.model_name, page_url(given.host, port, shown))

    server = DrainingServer(uvicorn_config(app, given.host, given.http_port, config), service, on_ready=announce)
    asyncio.run(server.serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
