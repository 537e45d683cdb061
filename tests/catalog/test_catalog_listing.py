"""Folders and globs of an object store are the scenes in them, as on a disk."""

from __future__ import annotations

import pytest
from support.object_stores import Store

from pipeline.catalog import listing as catalog_store
from pipeline.catalog.read import read_catalog
from pipeline.errors import SettingsError

KEYS = ("in/b.tif", "in/a.TIF", "in/.hidden.tif", "in/notes.txt", "in/deep/c.tif", "in/deep/er/d.tif", "in/.deep/e.tif")


@pytest.fixture
def full(store: Store) -> Store:
    for key in KEYS:
        store.put(key, b"")
    return store


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("in/", ["a.TIF", "b.tif"]),
        ("in/*", ["a.TIF", "b.tif", "notes.txt"]),
        ("in/?.tif", ["b.tif"]),
        ("in/*/*.tif", ["deep/c.tif"]),
        ("in/**/*.tif", ["b.tif", "deep/c.tif", "deep/er/d.tif"]),
        ("*/deep/*.tif", ["deep/c.tif"]),
        ("in/.deep/*.tif", [".deep/e.tif"]),
    ],
)
def test_a_folder_or_glob_is_expanded_to_its_objects(full: Store, source: str, found: list[str]) -> None:
    entries = read_catalog([f"s3://{full.bucket}/{source}"])
    assert [entry.location for entry in entries] == [f"s3://{full.bucket}/in/{name}" for name in found]


def test_one_object_is_named_as_it_is(full: Store) -> None:
    (entry,) = read_catalog([f"s3://{full.bucket}/in/none[1].tif"])
    assert entry.location == f"s3://{full.bucket}/in/none[1].tif"


def test_a_source_without_objects_is_refused(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, message in (("out/", "matches no object; looked for .tif"), ("in/*.jp2", "matches no object; check")):
        with pytest.raises(SettingsError, match=message):
            read_catalog([f"s3://{full.bucket}/{source}"])
    with pytest.raises(SettingsError, match="there is no bucket nowhere-at-all"):
        read_catalog(["s3://nowhere-at-all/"])
    monkeypatch.setattr(catalog_store, "MAX_LISTED_OBJECTS", 3)
    with pytest.raises(SettingsError, match="more than 3 objects would have to be listed; name a narrower folder"):
        read_catalog([f"s3://{full.bucket}/**/*.tif"])
