"""Downloads raw video from S3 or a compatible object store."""

import os
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from components.ingest.config import IngestConfig
from components.ingest.formats import rejection_reason
from lpm_model.progress import Progress

_DEFAULT_ENDPOINT: Final = "https://s3.amazonaws.com"
_MB: Final = 1 << 20
_SIDECAR_BYTES: Final = 65_536


def download(address: str, folder: Path, config: IngestConfig, progress: Progress) -> tuple[list[tuple[str, str]], int]:
    """Download videos and sidecars below a prefix; files that exist with the same size and ETag are skipped.

    Server and keys come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and
    AWS_REGION.

    Args:
        address: "s3://bucket/prefix".
        folder: target; each object is stored under its key without the prefix.
        config: file types and limits.
        progress: progress bar.

    Returns:
        Rejected objects as (key, reason), and the number of ignored objects (neither video, audio nor YAML).

    Raises:
        ValueError: the bucket cannot be listed, or holds too many videos.
    """
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{address!r} has no bucket: give s3://bucket/prefix")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        client = _client()
        wanted, rejected, ignored = select_objects(
            client.list_objects(bucket_name=bucket, prefix=prefix, recursive=True), prefix, config
        )
        for entry, path in progress.track(wanted, "download"):
            _fetch(client, bucket, entry, folder / path)
    except (MinioException, HTTPError, OSError) as error:
        raise ValueError(f"cannot read {address} ({error}): check AWS_ENDPOINT_URL, the keys and the bucket") from error
    return rejected, ignored


def _client() -> Any:
    from minio import Minio
    from urllib3 import PoolManager, Retry, Timeout

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _DEFAULT_ENDPOINT
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    return Minio(
        endpoint=parts.netloc,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        secure=parts.scheme == "https",
        http_client=PoolManager(timeout=Timeout(connect=5.0, read=60.0), retries=Retry(total=2, backoff_factor=0.3)),
    )


def select_objects(
    objects: Any, prefix: str, config: IngestConfig
) -> tuple[list[tuple[Any, PurePosixPath]], list[tuple[str, str]], int]:
    """Decide which listed objects to download.

    Args:
        objects: entries of a bucket listing.
        prefix: the source's prefix.
        config: file types and limits.

    Returns:
        Objects to download with their target path; rejected objects as (key, reason); number of ignored objects.
    """
    wanted: list[tuple[Any, PurePosixPath]] = []
    rejected: list[tuple[str, str]] = []
    videos = ignored = 0
    below = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    for entry in objects:
        key = str(entry.object_name)
        if entry.is_dir or not key.startswith(below):
            continue
        name = key[len(below) :]
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in (*config.extensions, ".yaml"):
            reason = rejection_reason(name, config.extensions)
            rejected += [(key, reason)] if reason else []
            ignored += not reason
            continue
        if not name or any(part in ("", ".", "..") or part.startswith(".") for part in name.split("/")) or "\\" in name:
            rejected.append((key, "the key is not a plain relative path: rename the object"))
        elif entry.size > (_SIDECAR_BYTES if suffix == ".yaml" else config.max_file_mb * _MB):
            rejected.append((key, f"{entry.size / _MB:.1f} MB is too large: split it or raise max_file_mb"))
        else:
            wanted.append((entry, PurePosixPath(name)))
            videos += suffix != ".yaml"
        if videos > config.max_files:
            raise ValueError(
                f"more than {config.max_files} videos below {prefix!r}: raise max_files if this is intended"
            )
    return wanted, rejected, ignored


def _fetch(client: Any, bucket: str, entry: Any, target: Path) -> None:
    tag = target.with_name(f".{target.name}.etag")
    if target.is_file() and target.stat().st_size == entry.size and tag.is_file() and tag.read_text() == entry.etag:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    client.fget_object(bucket_name=bucket, object_name=entry.object_name, file_path=str(target))
    tag.write_text(entry.etag)
