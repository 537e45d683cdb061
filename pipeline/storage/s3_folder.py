"""Object store folders: read, write, list, copy and delete the objects under one `s3://` address by relative names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pipeline.errors import ConflictError, MissingError, SettingsError
from pipeline.storage.s3 import CONNECTIONS, split_address, store_access, translate_store_errors

BUCKET_NAME = re.compile(r"[a-z0-9A-Z][a-z0-9A-Z._\-]{1,253}[a-z0-9A-Z]")
PART_BYTES = 16 * 2**20
"""Larger files are uploaded and downloaded in parts of this size, concurrently; a failed part is retried alone."""
COPY_PART_BYTES = 256 * 2**20
"""The same for copies inside the store."""
CONTENT_TYPES = {
    ".json": "application/json",
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".png": "image/png",
    ".gpkg": "application/geopackage+sqlite3",
}
"""HTTP content types by suffix, for browsers and STAC clients."""


@dataclass(frozen=True, kw_only=True)
class StoredDocument:
    """A small object, read whole."""

    content: bytes
    etag: str
    """The store's name for this version."""
    age_s: float
    """Seconds since the last write, both times by the store's clock."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """An object of a listing."""

    size_bytes: int
    etag: str
    """The store's name for this version."""


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to be uploaded."""

    path: Path
    sha256: str
    """Digest of its bytes; stored in the object's metadata as `x-amz-meta-sha256`."""


class StoreFolder:
    """All objects whose keys begin with a prefix; thread-safe."""

    def __init__(self, address: str) -> None:
        """`address` is `s3://bucket` or `s3://bucket/prefix`, with or without a trailing slash.

        Raises:
            SettingsError: the address has another form.
        """
        bucket, prefix = split_address(address)
        if not BUCKET_NAME.fullmatch(bucket) or any(
            part in ("", ".", "..") for part in prefix.rstrip("/").split("/") if prefix
        ):
            raise SettingsError(
                f"{address}: must read s3://bucket/prefix, with the name of a bucket and single slashes"
            )
        self.text = address.rstrip("/")
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def address(self, name: str) -> str:
        """The address of an object."""
        return f"{self.text}/{name}"

    def check_reading(self) -> None:
        """Raise MissingError or AccessError when the bucket is missing or cannot be listed."""
        self._call("list_objects_v2", "", Prefix=self._prefix, MaxKeys=1)

    def read(self, name: str) -> StoredDocument | None:
        """Read a small object whole; None if it does not exist."""
        with translate_store_errors(self.address(name)):
            try:
                response = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            except self._client.exceptions.NoSuchKey:
                return None
            return StoredDocument(content=response["Body"].read(), etag=response["ETag"], age_s=_age_s(response))

    def write(self, name: str, content: bytes) -> str:
        """Write a small object whole; returns its ETag."""
        response = self._call("put_object", name, Body=content, ContentType=_type_of(name))
        return str(response["ETag"])

    def write_if_absent(self, name: str, content: bytes) -> str:
        """Create an object (`If-None-Match: *`); returns its ETag.

        Raises:
            ConflictError: it exists already.
        """
        return self._write_if(name, content, IfNoneMatch="*")

    def write_if_unchanged(self, name: str, content: bytes, etag: str) -> str:
        """Replace an object that still has this ETag (`If-Match`); returns the new ETag.

        Raises:
            ConflictError: it was replaced or deleted.
        """
        try:
            return self._write_if(name, content, IfMatch=etag)
        except MissingError as error:
            raise ConflictError(f"{self.address(name)}: deleted by another process; run again") from error

    def list_files(self, folder: str) -> dict[str, StoredFile]:
        """Every object below a folder, by its name relative to the folder."""
        start = self._key(f"{folder}/")
        return {
            each["Key"][len(start) :]: StoredFile(size_bytes=each["Size"], etag=each["ETag"])
            for page in self._pages(start)
            for each in page.get("Contents", ())
        }

    def list_by_folder(self) -> dict[str, dict[str, StoredFile]]:
        """All objects by top-level folder and name, one request per thousand objects.

        Empty where a single folder fills a page: the listing would be too long.
        """
        found: dict[str, dict[str, StoredFile]] = {}
        for page in self._pages(self._prefix):
            folders = set()
            for each in page.get("Contents", ()):
                folder, _, name = each["Key"][len(self._prefix) :].partition("/")
                found.setdefault(folder, {})[name] = StoredFile(size_bytes=each["Size"], etag=each["ETag"])
                folders.add(folder)
            if page.get("IsTruncated") and len(folders) == 1:
                return {}
        return found

    def list_folders(self) -> Iterator[str]:
        """Yield the names of the top-level folders in order, without hidden ones."""
        for page in self._pages(self._prefix, Delimiter="/"):
            for each in page.get("CommonPrefixes", ()):
                name = each["Prefix"][len(self._prefix) :].rstrip("/")
                if not name.startswith("."):
                    yield name

    def sha256_of(self, name: str) -> str | None:
        """The digest in an object's metadata; None if there is no such object or digest."""
        try:
            found = self._call("head_object", name)["Metadata"].get("sha256")
        except MissingError:
            return None
        return str(found) if found else None

    def size_of(self, name: str) -> int | None:
        """Bytes of an object; None if it does not exist."""
        try:
            return int(self._call("head_object", name)["ContentLength"])
        except MissingError:
            return None

    def upload(self, files: Mapping[str, LocalFile]) -> None:
        """Upload local files, by name, in parallel and with checksums."""
        with self._transfer(PART_BYTES) as transfer:
            futures = {
                name: transfer.upload(
                    str(file.path), self._bucket, self._key(name), extra_args=_metadata(name, file.sha256)
                )
                for name, file in files.items()
            }
            self._wait(futures)

    def download(self, name: str, path: Path) -> None:
        """Download an object into a local file."""
        with self._transfer(PART_BYTES) as transfer:
            self._wait({name: transfer.download(self._bucket, self._key(name), str(path))})

    def copy(self, source: str, target: str, digests: Mapping[str, str]) -> None:
        """Copy objects from folder `source` to folder `target`, in parallel; `digests` are their SHA-256 by name."""
        with self._transfer(COPY_PART_BYTES) as transfer:
            futures = {
                f"{target}/{name}": transfer.copy(
                    {"Bucket": self._bucket, "Key": self._key(f"{source}/{name}")},
                    self._bucket,
                    self._key(f"{target}/{name}"),
                    # S3 ignores new metadata in a copy unless they replace those of the source.
                    extra_args={**_metadata(name, sha256), "MetadataDirective": "REPLACE"},
                )
                for name, sha256 in digests.items()
            }
            self._wait(futures)

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; missing ones are ignored."""
        for name in names:
            self._call("delete_object", name)

    def abort_uploads(self, folder: str) -> None:
        """Abort unfinished multipart uploads, whose parts no listing shows."""
        response = self._call("list_multipart_uploads", "", Prefix=self._key(f"{folder}/"))
        for each in response.get("Uploads", ()):
            with translate_store_errors(self.text):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=each["Key"], UploadId=each["UploadId"])

    @property
    def _client(self) -> Any:
        return store_access().client

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}"

    def _call(self, operation: str, name: str, **arguments: object) -> Any:
        if name:
            arguments["Key"] = self._key(name)
        with translate_store_errors(self.address(name) if name else self.text):
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)

    def _write_if(self, name: str, content: bytes, **condition: str) -> str:
        from botocore.exceptions import ClientError

        key, content_type = self._key(name), _type_of(name)
        with translate_store_errors(self.address(name)):
            try:
                response = self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=content, ContentType=content_type, **condition
                )
            except ClientError as error:
                # 501: a store without conditional writes.
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 501:
                    raise
                response = self._client.put_object(Bucket=self._bucket, Key=key, Body=content, ContentType=content_type)
        return str(response["ETag"])

    def _pages(self, prefix: str, **arguments: str) -> Iterator[Any]:
        with translate_store_errors(self.text):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=prefix, **arguments)

    def _transfer(self, part_bytes: int) -> Any:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(
            multipart_threshold=part_bytes,
            multipart_chunksize=part_bytes,
            max_concurrency=CONNECTIONS // 2,
            preferred_transfer_client="classic",
        )
        return create_transfer_manager(self._client, config)

    def _wait(self, futures: Mapping[str, Any]) -> None:
        for name, future in futures.items():
            with translate_store_errors(self.address(name)):
                future.result()


def _type_of(name: str) -> str:
    return CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream")


def _metadata(name: str, sha256: str) -> dict[str, object]:
    return {"ContentType": _type_of(name), "Metadata": {"sha256": sha256}}


def _age_s(response: Mapping[str, Any]) -> float:
    date = response["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    return float((now - response["LastModified"]).total_seconds())
