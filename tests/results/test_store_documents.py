"""Documents of a run in a store and in a folder: what is listed, tried and copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.object_stores import Store

from pipeline.errors import SettingsError
from pipeline.results import documents as documents_module
from pipeline.results import open_results
from pipeline.results.documents import LocalDocuments, work_folder_of
from pipeline.storage import StoreFolder


def test_hidden_objects_of_a_folder_are_not_listed(store: Store) -> None:
    for name in ("out/town/a", "out/town/.lock", "out/town/.partial/a"):
        store.put(name, b"123")
    assert open_results(f"s3://{store.bucket}/out").documents.sizes("town") == {"a": 3}


def test_only_a_run_that_writes_tries_to_write(store: Store) -> None:
    documents = open_results(f"s3://{store.bucket}/out").documents
    store.fail("PUT .writable 403 9")
    documents.check(writing=False)
    with pytest.raises(SettingsError, match="the store refuses"):
        documents.check()


def test_buckets_of_one_name_at_two_endpoints_have_work_folders_of_their_own(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StoreFolder(f"s3://{store.bucket}/out")
    here = work_folder_of(folder, tmp_path)
    assert here == work_folder_of(StoreFolder(f"s3://{store.bucket}/out/"), tmp_path)
    assert here != work_folder_of(StoreFolder(f"s3://{store.bucket}/other"), tmp_path)
    access = documents_module.store_access()
    elsewhere = type(access)(**{**vars(access), "endpoint": "https://elsewhere"})
    monkeypatch.setattr(documents_module, "store_access", lambda: elsewhere)
    assert here != work_folder_of(folder, tmp_path)


def test_a_file_in_its_place_is_left_alone_and_another_is_copied(tmp_path: Path) -> None:
    documents = LocalDocuments(tmp_path / "out")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "polygons.gpkg"
    path.write_bytes(b"polygons")
    before = path.stat()
    documents.upload("polygons.gpkg", path)
    assert (path.read_bytes(), path.stat().st_ino) == (b"polygons", before.st_ino)
    documents.upload("copy/polygons.gpkg", path)
    assert (tmp_path / "out" / "copy" / "polygons.gpkg").read_bytes() == b"polygons"
