"""A real S3 server (SeaweedFS from its Python package) on loopback, for tests."""

import fcntl
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import MinioException

ACCESS_KEY, SECRET_KEY = "lpm-test", "lpm-test-secret"
START_S = 60


def weed_path() -> Path | None:
    """Return the `weed` of this environment, or of PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    return Path(found) if found else None


def free_ports(count: int) -> list[int]:
    """Return unused ports; each port + 10000, which weed uses for gRPC, is valid and unused too."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe, socket.socket() as grpc:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            try:
                grpc.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
        if port not in ports:
            ports.append(port)
    return ports


@contextmanager
def running(folder: Path, lock: Path) -> Iterator[str]:
    """Start the server, wait for a real PUT, yield its endpoint, stop it.

    Args:
        folder: an empty folder for its data and log.
        lock: servers with the same lock run one after the other: two at once are slow on a small machine.
    """
    weed = weed_path()
    assert weed is not None
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        s3, master, volume, filer = free_ports(4)
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
        identities = [{"name": "test", "credentials": credentials, "actions": actions}]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (folder / "data").mkdir()
        command = [
            *(str(weed), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
            *(f"-s3.port={s3}", "-s3.ip.bind=127.0.0.1", f"-s3.config={folder / 's3.json'}"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # fixed ports that are not used here
            *("-master.volumeSizeLimitMB=256", "-volume.max=80", "-master.telemetry=false"),
        ]
        with (folder / "weed.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env={**os.environ, "HOME": str(folder)}
            )
        try:
            _wait_for_put(f"127.0.0.1:{s3}", process, folder / "weed.log")
            yield f"http://127.0.0.1:{s3}"
        finally:
            process.kill()  # an orderly shutdown takes 10 s, and the folder is discarded
            process.wait()


def client(endpoint: str, *, secret: str = SECRET_KEY) -> Minio:
    http = urllib3.PoolManager(timeout=5, retries=False)
    host = endpoint.removeprefix("http://")
    return Minio(host, access_key=ACCESS_KEY, secret_key=secret, secure=False, region="us-east-1", http_client=http)


def _wait_for_put(host: str, process: subprocess.Popen[bytes], log: Path) -> None:

    probe, deadline = client(f"http://{host}"), time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if not probe.bucket_exists(bucket_name="warm-up"):
                probe.make_bucket(bucket_name="warm-up")
            probe.put_object(bucket_name="warm-up", object_name="x", data=io.BytesIO(b"x"), length=1)
        except (MinioException, urllib3.exceptions.HTTPError, OSError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"weed did not become usable in {START_S} s:\n{log.read_text()[-2000:]}")
