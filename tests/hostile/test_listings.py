"""One Item, page or row can neither stop a listing nor hang it: it is one refused scene, and the others run."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.stac_api import StacApi, serving

from pipeline.catalog.entry import CatalogEntry
from pipeline.catalog.layers import MAX_COLLECTIONS, parse_wkb
from pipeline.catalog.read import read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.catalog.stac import bounds
from pipeline.catalog.stac.bounds import MAX_BANDS, MAX_IDLE_PAGES
from pipeline.storage.retries import RetryPolicy

PUBLIC = "https://host.example"
DEEP = 900
"""Levels that Python's JSON parser still reads."""


@pytest.fixture
def api() -> Iterator[StacApi]:
    with serving(StacApi()) as running:
        yield running


def item(name: str, **fields: Any) -> dict[str, Any]:
    asset = {"href": f"{PUBLIC}/{name}.tif", "type": "image/tiff", "roles": ["data"]}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": {"type": "Point", "coordinates": [0, 0]},
        "bbox": [0, 0, 0, 0],
        "properties": {"datetime": "2026-05-01T00:00:00Z"},
        "collection": "a",
        "links": [],
        "assets": {"data": asset},
        **fields,
    }


def page(*features: object, **fields: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "stac_version": "1.0.0", "features": [*features], "links": [], **fields}


def nested(levels: int, inner: Any, wrap: Any) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


def point() -> dict[str, Any]:
    return {"type": "Point", "coordinates": [0, 0]}


def in_collection(geometry: Any) -> Any:
    return {"type": "GeometryCollection", "geometries": [geometry]}


HOSTILE: dict[str, Any] = {
    "deep geometry": item("x", geometry=nested(DEEP // 2 - 20, point(), in_collection)),
    "deep properties": item("x", properties={"datetime": None, "x": nested(DEEP - 20, 0, lambda inner: [inner])}),
    "deep id": item("x", id=nested(DEEP - 20, 0, lambda inner: [inner])),
    "deep link": item("x", links=[{"rel": "self", "href": nested(DEEP - 20, 0, lambda inner: [inner])}]),
    "deep asset": item("x", assets=nested(DEEP - 20, {}, lambda inner: {"a": inner})),
    "not an object": [],
    "nothing": None,
    "a number": math.nan,
    "nan everywhere": item(
        "nan",
        bbox=[math.nan] * 4,
        geometry={"type": "Point", "coordinates": [math.nan, math.inf]},
        properties={"datetime": "2026-05-01T00:00:00Z", "eo:cloud_cover": math.nan, "gsd": -math.inf},
    ),
    "an endless number": item("x", bbox=[10**400, 0, 1, 1]),
    "a long id": item("x" * 1_000_000),
    "a long link": item("long", links=[{"rel": "self", "href": f"{PUBLIC}/{'y' * 1_000_000}"}]),
    "a long media type": item("type", assets={"data": {"href": "a", "type": "z" * 1_000_000}}),
    "many links": item("links", links=[{"rel": "self", "href": f"{PUBLIC}/i.json"}] * 50_000),
    "a wrong date": item("x", properties={"datetime": "9" * 100_000}),
    "geometry of another kind": item("kind", geometry={"type": "Curve" * 1000, "coordinates": {}}),
}


def listed(entries: Iterator[CatalogEntry]) -> list[tuple[str, bool]]:
    """Id of each scene, and whether it is refused; each refusal has a message of bounded size."""
    found = [*entries]
    assert all(len(entry.refused or "") < 10_000 for entry in found)
    return [("" if entry.refused else entry.id, entry.refused is not None) for entry in found]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("box", [None, (-1.0, -1.0, 1.0, 1.0)])
def test_an_item_that_is_no_item_is_one_scene_at_most(
    tmp_path: Path, name: str, box: tuple[float, float, float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A scene whose footprint is unknown is opened, and its server is not there.
    monkeypatch.setattr("pipeline.storage.remote.REQUEST_RETRIES", RetryPolicy(()))
    content = json.dumps(page(item("before"), HOSTILE[name], item("after")))
    (tmp_path / "items.json").write_text(content)
    start = time.monotonic()
    found = listed(read_catalog([tmp_path / "items.json"], CatalogSpec(bbox=box)))
    assert time.monotonic() - start < 10
    assert [*found[:1], found[-1]] == [("before", False), ("after", False)]
    assert len(found) <= 3


@pytest.mark.parametrize("levels", [DEEP, 5000, 200_000])
@pytest.mark.parametrize("shape", ["list", "object"])
def test_a_document_that_is_nested_without_end_is_refused(tmp_path: Path, levels: int, shape: str) -> None:
    opening, closing = ("[", "]") if shape == "list" else ('{"a":', "}")
    links = [{"rel": "item", "href": f"./{name}.json"} for name in ("before", "deep", "after")]
    catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "c", "links": links}
    (tmp_path / "catalog.json").write_text(json.dumps(catalog))
    for name in ("before", "after"):
        (tmp_path / f"{name}.json").write_text(json.dumps(item(name)))
    inner = opening * levels + "1" + closing * levels
    (tmp_path / "deep.json").write_text(f'{{"type": "Feature", "x": {inner}}}')
    assert listed(read_catalog([tmp_path / "catalog.json"])) == [("before", False), ("", True), ("after", False)]


# Bands and assets.


def banded(count: int) -> dict[str, Any]:
    bands = [{"name": f"b{k}", "eo:common_name": f"c{k}"} for k in range(count)]
    return {"data": {"href": f"{PUBLIC}/x.tif", "type": "image/tiff", "bands": bands}}


def test_an_item_of_a_thousand_bands_is_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(json.dumps(page(item("x", assets=banded(MAX_BANDS)))))
    start = time.monotonic()
    (entry,) = read_catalog([tmp_path / "items.json"])
    assert time.monotonic() - start < 2
    assert entry.refused is None
    assert len(entry.files[0].names) == MAX_BANDS


@pytest.mark.parametrize(
    "assets",
    [
        banded(MAX_BANDS + 1),
        banded(100_000),
        {f"a{k}": {"href": f"{PUBLIC}/{k}.tif", "type": "image/tiff"} for k in range(MAX_BANDS + 1)},
        {f"a{k}": banded(100)["data"] for k in range(100)},
        {f"a{k}": {"href": "x", "type": "text/html"} for k in range(100_000)},
    ],
    ids=["bands", "many bands", "assets", "bands of assets", "pages"],
)
def test_an_item_of_too_many_bands_is_one_refused_scene(tmp_path: Path, assets: dict[str, Any]) -> None:
    content = json.dumps(page(item("before"), item("x", assets=assets), item("after")))
    (tmp_path / "items.json").write_text(content)
    start = time.monotonic()
    entries = [*read_catalog([tmp_path / "items.json"])]
    assert time.monotonic() - start < 10
    assert [entry.refused is not None for entry in entries] == [False, True, False]
    assert f"over {MAX_BANDS:,}; correct the Item" in str(entries[1].refused)


# Pages and documents.


def test_pages_that_repeat_themselves_end(api: StacApi) -> None:
    """Each page has another address."""
    base = api.address.removesuffix("/v1")
    first = item("only")

    class Pages(dict[str, Any]):
        def __contains__(self, path: object) -> bool:
            return True

        def __getitem__(self, path: str) -> Any:
            number = int(path.strip("/p.json") or 0)
            return page(first, links=[{"rel": "next", "href": f"{base}/p{number + 1}.json"}])

    api.documents = Pages()
    found = [*read_catalog([f"{base}/p0.json"])]
    assert [entry.refused is None for entry in found] == [True, False]
    assert "the server repeats itself" in str(found[1].refused)
    assert len(api.requests) <= MAX_IDLE_PAGES + 12, "read ahead at most"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_search_that_repeats_itself_ends(api: StacApi, method: str) -> None:
    api.methods, api.items = (method,), [item("only")]
    search = api.search

    def endless(method: str, given: Any) -> dict[str, Any]:
        link = {"rel": "next", "href": f"{api.address}/search?collections=a&page={len(api.requests)}", "method": method}
        return {**search(method, {**given, "token": 0}), "links": [{**link, "body": dict(given)}]}

    api.search = endless  # type: ignore[method-assign]
    found = [*read_catalog([f"stac+{api.address}?collections=a"])]
    assert [entry.refused is None for entry in found] == [True, False]
    assert "the server repeats itself" in str(found[1].refused)
    assert len(api.requests) <= MAX_IDLE_PAGES + 5


def test_a_catalog_of_endless_documents_ends(api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_DOCUMENTS", 50)
    base = api.address.removesuffix("/v1")

    class Children(dict[str, Any]):
        def __contains__(self, path: object) -> bool:
            return True

        def __getitem__(self, path: str) -> Any:
            links = [{"rel": "child", "href": f"{base}{path}x"}, {"rel": "child", "href": f"{base}{path}y"}]
            return {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "c", "links": links}

    api.documents = Children()
    (entry,) = read_catalog([f"stac+{base}/c"])
    assert "the source leads to over 50 documents; name its parts" in str(entry.refused)
    assert len(api.requests) < 75


def test_pages_with_new_items_go_on(api: StacApi) -> None:
    api.items = [item(f"s{number:04}") for number in range(3000)]
    entries = read_catalog([f"stac+{api.address}?collections=a"], CatalogSpec(limit=2500))
    assert len([*entries]) == 2500


# Tables.


def deep_wkb(levels: int) -> bytes:
    """A point in geometry collections."""
    return b"\x01\x07\x00\x00\x00\x01\x00\x00\x00" * levels + struct.pack("<BIdd", 1, 1, 0, 0)


def test_a_footprint_of_nested_collections_is_unknown() -> None:
    assert parse_wkb(deep_wkb(MAX_COLLECTIONS)) is not None
    for header in (
        b"\x01\x07\x00\x00\x00", b"\x01\xef\x03\x00\x00", b"\x01\x07\x00\x00\x80", b"\x01\x07\x00\x00\xa0",
        b"\x00\x00\x00\x00\x07", b"\x00\x00\x00\x0b\xbf",
    ):  # fmt: skip
        assert parse_wkb((header + b"\x01\x00\x00\x00") * 100_000) is None
    assert parse_wkb(None) is None


@pytest.mark.parametrize("kind", ["paths", "items"])
def test_a_row_of_a_table_with_a_deep_footprint_is_one_scene(tmp_path: Path, kind: str) -> None:
    names = ["before", "deep", "after"]
    footprints = [deep_wkb(1), deep_wkb(300_000), deep_wkb(1)]
    assets = [json.dumps({"data": {"href": f"{PUBLIC}/{name}.tif", "type": "image/tiff"}}) for name in names]
    column = {"assets": assets} if kind == "items" else {"path": [f"{PUBLIC}/{name}.tif" for name in names]}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    table = pa.table(
        {"id": names, **column, "datetime": ["2026-05-01T00:00:00Z"] * 3, "geometry": pa.array(footprints, pa.binary())}
    )
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), tmp_path / "t.parquet")
    found = read_catalog([tmp_path / "t.parquet"])
    assert [entry.id for entry in found] == names
    start = time.monotonic()
    # Its place is unknown, so it would be opened, which no test does.
    boxed = read_catalog([tmp_path / "t.parquet"], CatalogSpec(bbox=(-1, -1, 1, 1)))
    assert next(boxed).id == "before"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("bad", ["[" * 100_000, "{", "3", '{"data": 3}', "[[[]]]", '{"data": ' * 900 + "1" + "}" * 900])
def test_a_row_of_a_table_with_broken_assets_is_one_refused_scene(tmp_path: Path, bad: str) -> None:
    good = json.dumps({"data": {"href": f"{PUBLIC}/a.tif", "type": "image/tiff"}})
    other = good.replace("a.tif", "b.tif")
    columns = {"id": ["before", "bad", "after"], "assets": [good, bad, other], "datetime": ["2026-05-01T00:00:00Z"] * 3}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "t.parquet")
    assert listed(read_catalog([tmp_path / "t.parquet"])) == [("before", False), ("", True), ("after", False)]
