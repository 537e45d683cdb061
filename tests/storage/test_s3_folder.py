"""A folder of an object store: what its listings show, what copies carry, and how old an object is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from support.object_stores import Store

from pipeline.errors import ConflictError
from pipeline.storage import StoreFolder, store_access


@pytest.fixture
def folder(store: Store) -> StoreFolder:
    return StoreFolder(f"s3://{store.bucket}/out")


def test_hidden_folders_are_not_listed(store: Store, folder: StoreFolder) -> None:
    for name in ("out/b/x", "out/a/x", "out/.hidden/x", "out/run.json", "elsewhere/x"):
        store.put(name, b"")
    assert [*folder.list_folders()] == ["a", "b"]
    assert sorted(folder.list_files("a")) == ["x"]


def test_a_copy_carries_the_digest_that_is_named(store: Store, folder: StoreFolder) -> None:
    store.put("out/a/x.tif", b"pixels")
    folder.copy("a", "b", {"x.tif": "digest of pixels"})
    assert store.get("out/b/x.tif") == b"pixels"
    assert folder.sha256_of("b/x.tif") == "digest of pixels"
    head = store.client.head_object(Bucket=store.bucket, Key="out/b/x.tif")
    assert head["ContentType"].startswith("image/tiff")


def test_an_object_is_as_old_as_the_clock_of_the_store_says(folder: StoreFolder) -> None:
    def written_earlier(parsed: dict[str, Any], **_: object) -> None:
        parsed["LastModified"] -= timedelta(seconds=500)

    folder.write("lock", b"mine")
    events = store_access().client.meta.events
    events.register("after-call.s3.GetObject", written_earlier)
    try:
        found = folder.read("lock")
    finally:
        events.unregister("after-call.s3.GetObject", written_earlier)
    assert found is not None
    assert 499 <= found.age_s <= 510


def test_an_object_is_replaced_only_if_it_is_the_one_that_was_read(folder: StoreFolder) -> None:
    first = folder.write_if_absent("lock", b"mine")
    with pytest.raises(ConflictError):
        folder.write_if_absent("lock", b"theirs")
    second = folder.write_if_unchanged("lock", b"mine too", first)
    with pytest.raises(ConflictError):
        folder.write_if_unchanged("lock", b"theirs", first)
    folder.remove(["lock"])
    with pytest.raises(ConflictError):
        folder.write_if_unchanged("lock", b"theirs", second)
