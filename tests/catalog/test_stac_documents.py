"""STAC documents: what an answer of a server means, how large a document may be, and which links lead where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pystac
import pytest
from support.stac_api import StacApi, serving

from pipeline.catalog.read import read_catalog
from pipeline.catalog.stac import documents, walk
from pipeline.catalog.stac.assets import find_band_files
from pipeline.catalog.stac.documents import DocumentPrefetcher, DocumentReader
from pipeline.catalog.stac.links import DocumentLocation, document_location
from pipeline.errors import SceneError, TransientError
from pipeline.storage.retries import RetryPolicy


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[StacApi]:
    monkeypatch.setattr(documents, "REQUEST_RETRIES", RetryPolicy((0.0,)))
    with serving(StacApi()) as api:
        yield api


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, SceneError, "check the address"),
        (401, SceneError, "access denied"),
        (403, SceneError, "access denied"),
        (404, SceneError, "check the address"),
        (408, TransientError, "run again later"),
        (429, TransientError, "run again later"),
        (500, TransientError, "run again later"),
        (501, TransientError, "run again later"),
        (599, TransientError, "run again later"),
    ],
)
def test_an_answer_is_an_error_of_the_document_or_of_the_server(
    api: StacApi, status: int, kind: type[Exception], message: str
) -> None:
    api.failing += [status] * 2
    with pytest.raises(kind, match=rf"the server answers {status} .*{message}"):
        DocumentReader().read(document_location(api.address))
    assert len(api.requests) == (2 if kind is TransientError else 1)


def test_a_document_may_be_large_and_not_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", path.stat().st_size)
    assert DocumentReader().read(document_location(str(path))) == {"a": "x" * 100}
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", path.stat().st_size - 1)
    with pytest.raises(SceneError, match="MiB of JSON"):
        DocumentReader().read(document_location(str(path)))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_a_document_is_an_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SceneError, match="not an object"):
        DocumentReader().read(document_location(str(tmp_path / "a.json")))


def test_a_document_that_was_read_ahead_is_read_anew_the_next_time(api: StacApi) -> None:
    api.documents["/a.json"] = {"version": 1}
    document = document_location(api.address.replace("/v1", "/a.json"))
    prefetcher = DocumentPrefetcher()
    prefetcher.prefetch([document])
    assert prefetcher.read(document) == {"version": 1}
    api.documents["/a.json"] = {"version": 2}
    assert prefetcher.read(document) == {"version": 2}
    prefetcher.close()


def item(**assets: dict[str, Any]) -> pystac.Item:
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "s",
            "geometry": None,
            "properties": {"datetime": "2024-01-01T00:00:00Z"},
            "links": [],
            "assets": assets,
        }
    )


def files_of(found: pystac.Item, tmp_path: Path) -> list[str]:
    place = document_location(str(tmp_path / "item.json"))
    files = find_band_files(found, place, drivers=("GTiff",), keys=())
    return [Path(file.location).name for file in files.files] or [Path(files.location).name]


def test_a_media_type_goes_before_a_suffix(tmp_path: Path) -> None:
    assets = {"data": {"href": "./a.bin", "type": "image/tiff"}, "page": {"href": "./b.tif", "type": "text/html"}}
    assert files_of(item(**assets), tmp_path) == ["a.bin"]


def test_the_finest_of_equal_bands_is_found_whatever_the_rotation_of_its_pixels(tmp_path: Path) -> None:
    """The transform of the second has pixels of 10 m, turned by a quarter: its first number is 0."""
    band = [{"common_name": "red"}]
    assets = {
        "coarse": {"href": "./a.tif", "type": "image/tiff", "eo:bands": band, "proj:transform": [20, 0, 0, 0, -20, 0]},
        "fine": {"href": "./b.tif", "type": "image/tiff", "eo:bands": band, "proj:transform": [0, 10, 0, 10, 0, 0]},
    }
    assert files_of(item(**assets), tmp_path) == ["b.tif"]


def test_one_catalog_under_two_links_is_read_once(tmp_path: Path) -> None:
    catalog: dict[str, Any] = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "d"}
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    links = [{"rel": "child", "href": href} for href in ("./deep/c.json", "./link/c.json", "./deep/../deep/c.json")]
    (tmp_path / "catalog.json").write_text(json.dumps({**catalog, "links": links}))
    child = item(data={"href": "./a.tif", "type": "image/tiff"}).to_dict()
    (tmp_path / "deep" / "i.json").write_text(json.dumps(child))
    (tmp_path / "deep" / "c.json").write_text(
        json.dumps({**catalog, "id": "deep", "links": [{"rel": "item", "href": "./i.json"}]})
    )
    found = [*read_catalog([tmp_path / "catalog.json"])]
    assert [(entry.id, entry.refused) for entry in found] == [("s", None)]


@pytest.mark.parametrize("before", range(20))
def test_a_collection_of_items_is_known_wherever_its_marker_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(walk, "CHUNK_BYTES", 16)
    (tmp_path / "a.geojson").write_bytes(b" " * before + b'{"stac_version": "1.0.0"}')
    assert walk.is_stac_source(str(tmp_path / "a.geojson"))
    (tmp_path / "a.geojson").write_bytes(b" " * before + b'{"stac_versio": "1.0.0"}')
    assert not walk.is_stac_source(str(tmp_path / "a.geojson"))


def test_no_more_documents_are_read_ahead_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def note(_: DocumentReader, document: DocumentLocation) -> dict[str, Any]:
        read.append(document.address)
        return {}

    monkeypatch.setattr(DocumentReader, "read", note)
    prefetcher, found = DocumentPrefetcher(), [document_location(f"https://a.example/{k}.json") for k in range(20)]
    prefetcher.prefetch(found)
    prefetcher.read(found[0])
    prefetcher.prefetch(found[1:])
    prefetcher._pool.shutdown(wait=True)
    assert sorted(read) == sorted(each.address for each in found[: documents.MAX_PREFETCHED + 1])
