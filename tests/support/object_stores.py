"""What tests of object stores share: a local S3 server, reached by boto3 and GDAL through the usual variables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest


@dataclass(frozen=True, kw_only=True)
class Store:
    """A bucket of the local server."""

    folder: Path
    """The server's folder, for faults and its log."""
    endpoint: str
    """Its URL."""
    client: Any
    """boto3's client of it."""
    bucket: str = field(default_factory=lambda: f"bucket-{uuid4().hex[:8]}")
    """Its name."""

    def put(self, name: str, content: bytes | Path) -> str:
        """Write an object; returns its address."""
        body = content if isinstance(content, bytes) else content.read_bytes()
        self.client.put_object(Bucket=self.bucket, Key=name, Body=body)
        return f"s3://{self.bucket}/{name}"

    def get(self, name: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()
        return content

    def names(self, prefix: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [each["Key"][len(prefix) :] for each in found.get("Contents", ())]

    def fail(self, *orders: str) -> None:
        """Let requests fail, see `s3_server`; without orders, none."""
        if orders:
            (self.folder / "faults").write_text("\n".join(orders))
        else:
            (self.folder / "faults").unlink(missing_ok=True)

    @property
    def requests(self) -> list[str]:
        return (self.folder / "requests.log").read_text().splitlines()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, Any]]:
    """Folder, URL and client of a local S3 server."""
    secrets = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    folder = tmp_path_factory.mktemp("s3")
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            yield folder, endpoint, boto3.client("s3", endpoint_url=endpoint, **secrets)
        finally:
            server.kill()


@pytest.fixture
def store(s3_server: tuple[Path, str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A new bucket, which the usual variables lead to; local work goes into the test's folder."""
    folder, endpoint, client = s3_server
    for name in ("AWS_PROFILE", "AWS_S3_ENDPOINT", "AWS_NO_SIGN_REQUEST", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = Store(folder=folder, endpoint=endpoint, client=client)
    store.client.create_bucket(Bucket=store.bucket)
    yield store
    store.fail()
