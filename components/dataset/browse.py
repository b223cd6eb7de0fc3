"""Serve a dataset's report page on localhost, restricted to its folder, with clips decoded on demand."""

import logging
import tempfile
import urllib.parse
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from components.dataset.manifest import read_rows
from components.dataset.shards import load_array, read_shard
from lpm_model.files import read_json

log = logging.getLogger(__name__)

PAGE = "curation.html"
_TYPES = {".html", ".css", ".js", ".json", ".jpg", ".png", ".svg", ".woff", ".woff2", ".ttf", ".mp4"}
"""Extensions of the served files; shards and manifest are not served."""


def page_of(dataset: Path) -> Path:
    """Return the report page of a dataset.

    Raises:
        ValueError: the dataset has no page.
    """
    page = dataset / PAGE
    if not page.is_file():
        raise ValueError(f"{page} is missing: give the folder that `lpm curate` wrote, such as runs/latest/dataset")
    return page.resolve()


class Clips:
    """Decodes kept clips from their latents, with both voices mixed."""

    def __init__(self, dataset: Path, autoencoder: Path | None = None) -> None:
        """Read the manifest and load the autoencoder.

        Args:
            dataset: folder that curate wrote.
            autoencoder: the one that it was encoded with; None = the bundled tiny one.

        Raises:
            ValueError: the dataset was encoded with another autoencoder.
        """
        from lpm_model.autoencoder.load import load_autoencoder

        self._dataset, self._lock = dataset, Lock()
        self._shards = {row["clip_id"]: row["shard"] for row in read_rows(dataset / "manifest.parquet") if row["kept"]}
        self._autoencoder = load_autoencoder(autoencoder)
        if read_json(dataset / "dataset.json")["autoencoder_digest"] != self._autoencoder.digest:
            raise ValueError(f"{dataset} was encoded with another autoencoder: give its folder with --autoencoder")

    def mp4(self, clip_id: str) -> bytes | None:
        """Return a clip as MP4 bytes, or None if no kept clip has that id."""
        import torch

        from lpm_model.character import to_frames
        from serving.media.mp4 import Mp4Writer
        from serving.talk import mix

        if clip_id not in self._shards:
            return None
        shard = self._dataset / "shards" / self._shards[clip_id]
        parts = next(members for name, members in read_shard(shard) if name == clip_id)
        latents = torch.from_numpy(load_array(parts["latents.npy"]).astype(np.float32))[None]
        with self._lock, torch.inference_mode():
            frames = to_frames(self._autoencoder.decode(latents.to(self._autoencoder.decoder_dtype)).float())[0].numpy()
        audio = mix(load_array(parts["speak.npy"]), load_array(parts["listen.npy"]))
        with tempfile.TemporaryDirectory(prefix="lpm-clip-") as place:
            path = Path(place) / "clip.mp4"
            with Mp4Writer(path, height_px=frames.shape[1], width_px=frames.shape[2]) as writer:
                writer.write(frames[1:], audio)  # frame 0 is the character image and has no audio
            return path.read_bytes()


class _Handler(SimpleHTTPRequestHandler):
    """Serves files of one folder: no listings, no links out of it, no other host names (DNS rebinding)."""

    def __init__(self, *arguments: Any, clips: Clips, **options: Any) -> None:
        self._clips = clips
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if not self._host_allowed():
            return
        if path in ("", "/"):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{PAGE}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/clips/") and path.endswith(".mp4"):
            self._send_clip(path.removeprefix("/clips/").removesuffix(".mp4"))
        elif self._may_serve():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._host_allowed() and self._may_serve():
            super().do_HEAD()

    def _host_allowed(self) -> bool:
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in ("127.0.0.1", "localhost"):
            return True
        self.send_error(HTTPStatus.FORBIDDEN, "only 127.0.0.1 and localhost are allowed")
        return False

    def _may_serve(self) -> bool:
        """Return whether the path names a file of the folder that may be served."""
        root, path = Path(self.directory).resolve(), Path(self.translate_path(self.path)).resolve()
        if path.is_file() and path.is_relative_to(root) and path.suffix in _TYPES:
            return True
        self.send_error(HTTPStatus.NOT_FOUND)
        return False

    def _send_clip(self, clip_id: str) -> None:
        data = self._clips.mp4(clip_id)
        if data is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no kept clip has this id")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug(format, *arguments)


def server(dataset: Path, port: int, autoencoder: Path | None = None) -> ThreadingHTTPServer:
    """Return a server of one dataset on 127.0.0.1 (port 0 = a free one). The caller runs and closes it.

    Raises:
        ValueError: the folder is not a dataset, or was encoded with another autoencoder.
    """
    page_of(dataset)
    handler = partial(_Handler, clips=Clips(dataset, autoencoder), directory=str(dataset.resolve()))
    return ThreadingHTTPServer(("127.0.0.1", port), handler)
