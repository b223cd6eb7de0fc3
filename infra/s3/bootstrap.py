"""Create the platform's buckets on MinIO or any S3 and check that they work. Safe to run again.

    export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
    python infra/s3/bootstrap.py --endpoint http://minio.storage.svc:9000

Stand-alone on purpose (it needs only the `minio` package), so that a job can run it before anything else is installed.
Credentials come from AWS_* variables only, never from arguments, where other users of the machine could read them.
"""

import argparse
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import MinioException, S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, Expiration, LifecycleConfig, Rule
from minio.lifecycleconfig import NoncurrentVersionExpiration as OldVersions
from minio.versioningconfig import VersioningConfig

DEFAULT_BUCKETS = ("lpm-data", "lpm-models", "lpm-runs")
SCRATCH_PREFIX = "tmp/"
"""Objects below this prefix are deleted after SCRATCH_DAYS in every bucket."""
SCRATCH_DAYS = 7


RETRYABLE_STATUS = (500, 502, 503, 504)
"""Errors after which the request is retried."""


class BootstrapError(Exception):
    """A failure, with its remedy."""


@contextmanager
def with_remedy(action: str, endpoint: str) -> Iterator[None]:
    """Turn errors of the client or the network into a message with a remedy."""
    try:
        yield
    except S3Error as error:
        remedies = {
            "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
            "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and --region",
            "AccessDenied": "give the key the right to do this, or let an administrator run the script",
            "BucketAlreadyExists": "another account owns this name; choose others with --buckets",
            "RequestTimeTooSkewed": "set this machine's clock",
        }
        remedy = remedies.get(error.code or "", "see the server's log")
        raise BootstrapError(f"cannot {action}: {error.code}: {error.message}; {remedy}") from error
    except (urllib3.exceptions.HTTPError, MinioException, OSError) as error:
        raise BootstrapError(f"cannot {action}: {endpoint} does not answer as an S3 server ({error})") from error
    except ValueError as error:
        raise BootstrapError(f"cannot {action}: {error}") from error


def connect(endpoint: str, region: str) -> Minio:
    """Create a client for an endpoint such as http://minio:9000.

    Raises:
        BootstrapError: a malformed address or missing credentials.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
        raise BootstrapError(f"--endpoint is {endpoint!r}: write it as http://HOST:PORT or https://HOST[:PORT]")
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        raise BootstrapError("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    http = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=5, read=30),
        retries=urllib3.Retry(total=3, backoff_factor=0.5, status_forcelist=RETRYABLE_STATUS, raise_on_status=False),
        ca_certs=os.environ.get("AWS_CA_BUNDLE"),
    )
    with with_remedy("connect", endpoint):
        return Minio(
            parts.netloc,
            access_key=key,
            secret_key=secret,
            session_token=os.environ.get("AWS_SESSION_TOKEN"),
            secure=parts.scheme == "https",
            region=region,
            http_client=http,
        )


def wait_until_usable(client: Minio, endpoint: str, timeout_s: float) -> None:
    """Wait until the server answers a signed request (a port that is open is not enough)."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with with_remedy("list buckets", endpoint):
                client.list_buckets()
            return
        except BootstrapError as error:
            final = isinstance(error.__cause__, S3Error) and error.__cause__.code not in ("InternalError", "SlowDown")
            if final or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def lifecycle() -> LifecycleConfig:
    """Return lifecycle rules that delete scratch objects, old versions and incomplete uploads."""
    everything = Filter(prefix="")
    return LifecycleConfig(
        [
            Rule(
                status=ENABLED,
                rule_id="scratch",
                rule_filter=Filter(prefix=SCRATCH_PREFIX),
                expiration=Expiration(days=SCRATCH_DAYS),
            ),
            Rule(
                status=ENABLED,
                rule_id="old-versions",
                rule_filter=everything,
                noncurrent_version_expiration=OldVersions(noncurrent_days=90),
            ),
            Rule(
                status=ENABLED,
                rule_id="broken-uploads",
                rule_filter=everything,
                abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=7),
            ),
        ]
    )


def policy(bucket: str, *, secure: bool) -> str:
    """Return a bucket policy: no key can delete the bucket; behind TLS, plain HTTP is denied. Nothing is public."""
    everyone = {"Effect": "Deny", "Principal": {"AWS": ["*"]}}
    statements = [{**everyone, "Action": ["s3:DeleteBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]}]
    if secure:
        insecure = {"Bool": {"aws:SecureTransport": "false"}}
        objects = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        statements.append({**everyone, "Action": ["s3:*"], "Resource": objects, "Condition": insecure})
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def optional(what: str, call: Callable[[], object]) -> str | None:
    """Make a call that some S3 servers do not support; return a warning instead of failing on those."""
    try:
        call()
    except S3Error as error:
        if error.code in ("NotImplemented", "MethodNotAllowed"):
            return f"this server has no {what} ({error.code})"
        raise
    return None


def ensure_bucket(client: Minio, bucket: str, region: str, endpoint: str) -> list[str]:
    """Create and configure a bucket; return warnings."""
    with with_remedy(f"make bucket {bucket}", endpoint):
        if not client.bucket_exists(bucket_name=bucket):
            try:
                client.make_bucket(bucket_name=bucket, location=region)
            except S3Error as error:
                if error.code != "BucketAlreadyOwnedByYou":  # another run was a moment faster
                    raise
    warnings = []
    secure = endpoint.startswith("https")
    steps: list[tuple[str, Callable[[], object]]] = [
        ("versioning", lambda: client.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))),
        ("lifecycle", lambda: client.set_bucket_lifecycle(bucket_name=bucket, config=lifecycle())),
        ("policy", lambda: client.set_bucket_policy(bucket_name=bucket, policy=policy(bucket, secure=secure))),
    ]
    for what, call in steps:
        with with_remedy(f"set {what} of {bucket}", endpoint):
            warning = optional(what, call)
        if warning:
            warnings.append(f"{bucket}: {warning}")
    return warnings


def round_trip(client: Minio, bucket: str, endpoint: str) -> None:
    """Put, get, compare and delete one small object.

    Raises:
        BootstrapError: any of it fails, or other bytes come back.
    """
    name, data = f"{SCRATCH_PREFIX}bootstrap-{uuid.uuid4().hex}", os.urandom(4096)
    with with_remedy(f"write to {bucket}", endpoint):
        written = client.put_object(bucket_name=bucket, object_name=name, data=io.BytesIO(data), length=len(data))
    with with_remedy(f"read from {bucket}", endpoint):
        response = client.get_object(bucket_name=bucket, object_name=name)
        try:
            back = response.read()
        finally:
            response.close()
            response.release_conn()
    if back != data:
        raise BootstrapError(f"{bucket} returned other bytes than were written: do not use this server")
    with with_remedy(f"delete from {bucket}", endpoint):
        client.remove_object(bucket_name=bucket, object_name=name, version_id=written.version_id)


def bootstrap(endpoint: str, buckets: list[str], region: str, timeout_s: float) -> list[str]:
    """Create all buckets and check each; return warnings."""
    client = connect(endpoint, region)
    wait_until_usable(client, endpoint, timeout_s)
    warnings = []
    for bucket in buckets:
        warnings += ensure_bucket(client, bucket, region, endpoint)
        round_trip(client, bucket, endpoint)
        print(f"{bucket}: ready")
    return warnings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; exit code 0 if every bucket is usable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True, help="http://HOST:PORT or https://HOST[:PORT]")
    parser.add_argument("--buckets", nargs="+", default=list(DEFAULT_BUCKETS), help="names; default: %(default)s")
    parser.add_argument("--region", default=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
    parser.add_argument("--timeout-s", type=float, default=60, help="how long to wait for the server")
    options = parser.parse_args(arguments)
    try:
        warnings = bootstrap(options.endpoint, options.buckets, options.region, options.timeout_s)
    except BootstrapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
