"""STAC becomes scenes: items, collections of them, static catalogs, tables and searches, wherever they lie."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow
import pyarrow.parquet
import pystac
import pytest
import shapely
from support.stac_api import StacApi, serving

from pipeline.catalog.entry import CatalogEntry
from pipeline.catalog.read import read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.catalog.stac import documents as catalog_documents
from pipeline.catalog.stac.documents import MAX_PREFETCHED, DocumentReader, Json
from pipeline.catalog.stac.items import ItemRules, item_row
from pipeline.catalog.stac.links import DocumentLocation, document_location
from pipeline.errors import SettingsError, TransientError
from pipeline.storage.retries import RetryPolicy

COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without pauses."""
    monkeypatch.setattr(catalog_documents, "REQUEST_RETRIES", RetryPolicy((0.0,) * 4))


@pytest.fixture
def api() -> Iterator[StacApi]:
    with serving(StacApi()) as api:
        yield api


def read(*sources: Path | str, **spec: object) -> list[CatalogEntry]:
    return [*read_catalog(sources, CatalogSpec(**spec))]  # type: ignore[arg-type]


def ids(*sources: Path | str, **spec: object) -> list[str]:
    """Ids of the scenes, of which none may be refused."""
    entries = read(*sources, **spec)
    assert [entry.refused for entry in entries if entry.refused is not None] == []
    return [entry.id for entry in entries]


def make_item(name: str, *, day: int = 1, lon: float = 0, clouds: float | None = None, href: str = "./") -> pystac.Item:
    """An item with a file each for red and nir, a degree square at longitude `lon`."""
    footprint = shapely.box(lon, 0, lon + 1, 1)
    item = pystac.Item(
        id=name,
        geometry=json.loads(shapely.to_geojson(footprint)),
        bbox=list(footprint.bounds),
        datetime=datetime(2026, 5, day, 10, 30, tzinfo=UTC),
        properties={} if clouds is None else {"eo:cloud_cover": clouds},
    )
    for key, common in (("B04", "red"), ("B08", "nir")):
        fields = {"bands": [{"name": key, "eo:common_name": common, "nodata": 0}]}
        item.add_asset(
            key, pystac.Asset(f"{href}{name}_{key}.tif", media_type=COG, roles=["data"], extra_fields=fields)
        )
    return item


def make_catalog(folder: Path) -> Path:
    """A self-contained catalog: `a`, and the collection `deep` of `b` and `c`."""
    root = pystac.Catalog(id="root", description="test")
    root.add_item(make_item("a", day=1, lon=0))
    extent = pystac.Extent(
        pystac.SpatialExtent([[0, 0, 30, 1]]), pystac.TemporalExtent([[datetime(2026, 5, 1, tzinfo=UTC), None]])
    )
    deep = pystac.Collection(id="deep", description="test", extent=extent)
    root.add_child(deep)
    deep.add_items([make_item("b", day=2, lon=10), make_item("c", day=3, lon=20)])
    root.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


# What a source can be


def test_an_item_is_a_scene_of_its_files_with_its_date_and_its_address(tmp_path: Path) -> None:
    path = write(tmp_path / "item.json", make_item("T33/x").to_dict())
    (entry,) = read(path)
    assert (entry.id, entry.acquired, entry.source) == ("T33_x", "2026-05-01T10:30:00Z", str(path))
    assert entry.location == entry.files[0].location == f"{tmp_path}/T33/x_B04.tif"
    assert [(file.names, file.nodata) for file in entry.files] == [(("red",), (0,)), (("nir",), (0,))]


@pytest.mark.parametrize("name", ["items.json", "items.geojson"])
def test_an_item_collection_is_distinguished_from_a_table_by_content(tmp_path: Path, name: str) -> None:
    items = pystac.ItemCollection([make_item("a"), make_item("b", day=2)])
    path = write(tmp_path / name, items.to_dict())
    assert ids(path) == ["a", "b"]
    table = {"type": "Feature", "geometry": None, "properties": {"path": "x.tif"}}
    assert ids(write(tmp_path / "table.geojson", {"type": "FeatureCollection", "features": [table]})) == ["x"]


def test_a_glob_of_items_is_each_of_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / "items" / f"{name}.json", make_item(name).to_dict())
    assert ids(f"{tmp_path}/items/*.json") == ["a", "b"]


def test_a_static_catalog_is_walked_items_first_then_children_as_far_as_asked(tmp_path: Path) -> None:
    path = make_catalog(tmp_path)
    assert ids(path) == ids(path) == ["a", "b", "c"]
    entries = read_catalog([path])
    assert [entry.id for entry in islice(entries, 2)] == ["a", "b"]
    (tmp_path / "deep" / "c" / "c.json").unlink()
    (rest,) = entries
    assert "this document and those below it are missing" in str(rest.refused)
    assert "no such file" in str(rest.refused).lower()


def test_a_catalog_that_links_to_itself_ends_and_every_document_is_read_once(tmp_path: Path) -> None:
    path = make_catalog(tmp_path)
    content = json.loads((tmp_path / "deep" / "collection.json").read_text())
    links = [{"rel": "child", "href": "../catalog.json"}, {"rel": "item", "href": "../deep/./b/b.json"}]
    write(tmp_path / "deep" / "collection.json", {**content, "links": [*content["links"], *links]})
    assert ids(path) == ["a", "b", "c"]


@pytest.mark.parametrize("form", ["struct", "map", "json"])
def test_a_table_of_items_is_read_row_by_row(tmp_path: Path, form: str) -> None:
    items = [make_item(f"s{k}", day=1 + k % 28, lon=k % 90) for k in range(200)]
    items[1].add_asset("tci", pystac.Asset("tci.tif", media_type=COG, roles=["visual"]))
    items[2].add_link(pystac.Link("self", "https://host/s2.json"))
    path = tmp_path / "items.parquet"
    pyarrow.parquet.write_table(item_table(items, form), path, row_group_size=60)
    entries = read(path)
    assert [entry.id for entry in entries] == [item.id for item in items]
    assert {len(entry.files) for entry in entries} == {2}
    assert [entries[k].files[1].location for k in (2, 3)] == ["https://host/s2_B08.tif", f"{tmp_path}/s3_B08.tif"]
    assert (entries[2].source, entries[3].source) == ("https://host/s2.json", None)
    assert entries[1].files[0].nodata == (0,)
    assert ids(path, bbox=(3.5, 0, 3.6, 1), since="2026-05-04") == ["s3", "s93", "s183"]


def item_table(items: Sequence[pystac.Item], form: str) -> pyarrow.Table:
    """Items as stac-geoparquet writes them: properties are columns, assets a struct, a map, or JSON."""
    records = [item.to_dict() for item in items]
    assets: Any = [record["assets"] for record in records]
    if form == "json":
        assets = [json.dumps(each) for each in assets]
    if form == "map":
        bands = pyarrow.list_(pyarrow.struct({"name": "string", "eo:common_name": "string", "nodata": "int64"}))
        value = pyarrow.struct(
            {"href": "string", "type": "string", "roles": pyarrow.list_(pyarrow.string()), "bands": bands}
        )
        assets = pyarrow.array([[*each.items()] for each in assets], type=pyarrow.map_("string", value))
    return pyarrow.table(
        {
            "id": [item.id for item in items],
            "stac_version": ["1.1.0"] * len(items),
            "geometry": shapely.to_wkb([shapely.box(*item.bbox or ()) for item in items]).tolist(),
            "bbox": [dict(zip(("xmin", "ymin", "xmax", "ymax"), item.bbox or (), strict=True)) for item in items],
            "datetime": [item.datetime for item in items],
            "assets": assets,
            "links": [[link for link in record["links"] if link["rel"] == "self"] for record in records],
        }
    )


def test_scales_of_items_may_be_left_to_the_files(tmp_path: Path) -> None:
    item = make_item("a")
    item.assets["B04"].extra_fields["bands"][0] |= {"raster:scale": 0.0001, "raster:offset": -0.1}
    path = write(tmp_path / "item.json", item.to_dict())
    (from_items,), (from_files,) = read(path), read(path, item_scales=False)
    assert [(file.scales, file.offsets) for file in (from_items.files[0], from_files.files[0])] == [
        ((0.0001,), (-0.1,)),
        ((None,),) * 2,
    ]
    assert from_files.files[0].nodata == from_items.files[0].nodata == (0,)


# Behind addresses


def test_a_catalog_on_a_server_is_walked_and_tries_again_when_the_server_fails(tmp_path: Path, api: StacApi) -> None:
    make_catalog(tmp_path)
    base = serve_folder(api, tmp_path)
    api.failing += [503, 500]
    entries = read(f"{base}/catalog.json")
    assert [(entry.id, entry.location, entry.source) for entry in entries][:2] == [
        ("a", f"{base}/a/a_B04.tif", f"{base}/a/a.json"),
        ("b", f"{base}/deep/b/b_B04.tif", f"{base}/deep/b/b.json"),
    ]
    assert [path for _, path, _ in api.requests][:3] == ["/static/catalog.json"] * 3
    api.documents["/landing"] = api.documents["/static/catalog.json"]
    assert ids(f"stac+{base}/deep/collection.json") == ["b", "c"]


def test_the_next_documents_of_a_server_are_read_together_and_no_more_than_those(
    tmp_path: Path, api: StacApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = pystac.Catalog("town", "a town")
    catalog.add_items([make_item(f"i{number:02}") for number in range(2 * MAX_PREFETCHED)])
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    base, together, alone, requests = (
        serve_folder(api, tmp_path),
        Barrier(MAX_PREFETCHED),
        DocumentReader.read,
        list[str](),
    )

    def meet(reader: DocumentReader, document: DocumentLocation) -> Json:
        requests.append(document.address)
        if not document.address.endswith("catalog.json"):
            together.wait(timeout=60)
        return alone(reader, document)

    monkeypatch.setattr(DocumentReader, "read", meet)
    entries = read_catalog([f"{base}/catalog.json"])
    assert next(entries).id == "i00"
    assert len(requests) == 1 + MAX_PREFETCHED
    assert [entry.id for entry in entries] == [f"i{number:02}" for number in range(1, 2 * MAX_PREFETCHED)]
    assert len(requests) == len(set(requests)) == 1 + 2 * MAX_PREFETCHED


def serve_folder(api: StacApi, folder: Path) -> str:
    """The JSON files of a folder under `/static`; returns their address."""
    api.documents |= {
        f"/static/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.json") if path.is_file()
    }
    return f"{api.address.removesuffix('/v1')}/static"


@pytest.mark.parametrize("methods", [("POST", "GET"), ("GET",)])
def test_a_search_is_fetched_page_by_page_and_tries_again_when_the_server_fails(
    api: StacApi, methods: tuple[str, ...]
) -> None:
    api.items = [search_item(api, f"s{k:03}", collection="ab"[k % 2], day=1 + k % 28) for k in range(500)]
    api.methods = methods
    entries = read_catalog([f"stac+{api.address}?collections=a"], CatalogSpec())
    found = [*islice(entries, 100)]
    assert [(method, path) for method, path, _ in api.requests] == [("GET", "/v1"), (methods[0], "/v1/search")]
    api.failing += [502, 429]
    assert [entry.id for entry in (*found, *entries)] == [f"s{k:03}" for k in range(0, 500, 2)]
    assert found[1].source == f"{api.address}/collections/a/items/s002"
    assert found[1].location == f"{api.address}/collections/a/items/s002_B04.tif"


def search_item(api: StacApi, name: str, *, collection: str = "a", **more: Any) -> dict[str, Any]:
    item = make_item(name, **more)
    item.add_link(pystac.Link("self", f"{api.address}/collections/{collection}/items/{name}"))
    return {**item.to_dict(), "collection": collection}


def test_the_selection_is_sent_to_the_server(api: StacApi) -> None:
    api.items = [search_item(api, f"s{k}", day=1 + k, lon=10 * k, clouds=10 * k) for k in range(6)]
    source = f"stac+{api.address}?collections=a"
    box = (-5, 0, 31, 1)
    assert ids(source, since="2026-05-02", until="2026-05-05", cloud_cover=20, bbox=box, limit=3) == ["s1", "s2"]
    ((_, _, given),) = [each for each in api.requests if each[1] == "/v1/search"]
    assert given == {
        "collections": ["a"],
        "bbox": list(box),
        "datetime": "2026-05-02T00:00:00Z/2026-05-05T23:59:59Z",
        "query": {"eo:cloud_cover": {"lte": 20}},
        "sortby": [{"field": "properties.datetime", "direction": "asc"}, {"field": "id", "direction": "asc"}],
        "limit": 3,
    }
    api.extensions, api.requests[:] = (), []
    assert ids(source, cloud_cover=20, bbox=box) == ["s0", "s1", "s2"]
    assert api.requests[-1][2].keys() == {"collections", "bbox", "limit"}
    assert ids(source, since="2026-05-05T10:00:00+02:00") == ["s4", "s5"]
    assert api.requests[-1][2]["datetime"] == "2026-05-05T08:00:00Z/.."


def test_items_of_a_collection_of_an_api_are_paged_through_without_a_search(api: StacApi) -> None:
    pages = [{"type": "FeatureCollection", "features": [search_item(api, name)], "links": []} for name in "ab"]
    pages[0]["links"] = [{"rel": "next", "href": "/v1/2"}]
    collection = {"type": "Collection", "stac_version": "1.0.0", "id": "c", "links": [{"rel": "items", "href": "1"}]}
    api.documents = {"/v1/c": collection, "/v1/1": pages[0], "/v1/2": pages[1]}
    assert ids(f"stac+{api.address}/c") == ["a", "b"]


@pytest.mark.parametrize(
    ("path", "failing", "error", "message"),
    [
        ("/gone.json", [], SettingsError, "answers 404 Not Found; check the address"),
        ("/v1", [401], SettingsError, "401 Unauthorized: access denied; check the credentials"),
        ("/v1", [503] * 5, TransientError, "answers 503 Service Unavailable; run again later"),
        ("/v1", [], SettingsError, r"name the collections of the API, as in .*/v1\?collections="),
        ("/text", [], SettingsError, "invalid JSON"),
        ("/list", [], SettingsError, "holds a JSON list"),
        ("/other", [], SettingsError, "is not a STAC Item, ItemCollection, Catalog or Collection"),
        ("/large", [], SettingsError, "over 0 MiB of JSON"),
        ("/item?collections=a", [], SettingsError, "is not the landing page of a STAC API"),
    ],
)
def test_an_address_without_stac_is_reported_at_once(
    api: StacApi, monkeypatch: pytest.MonkeyPatch, path: str, failing: list[int], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(catalog_documents, "MAX_DOCUMENT_BYTES", 10_000)
    documents = {"/text": b"<html>", "/list": b"[]", "/other": b'{"type": "Feature"}', "/large": b" " * 10_001}
    api.documents = {**documents, "/item": make_item("a").to_dict()}
    api.failing += failing
    with pytest.raises(error, match=message):
        read_catalog([f"stac+{api.address.removesuffix('/v1')}{path}"])


def test_a_missing_server_is_a_transient_error() -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        read_catalog(["stac+http://127.0.0.1:9/v1"])


def test_an_interrupted_search_ends_with_a_refusal(api: StacApi) -> None:
    api.items = [search_item(api, f"s{k}") for k in range(150)]
    entries = read_catalog([f"stac+{api.address}?collections=a"])
    assert len([*islice(entries, 100)]) == 100
    api.failing += [500] * 5
    (rest,) = entries
    assert "cannot be read to its end" in str(rest.refused)


# What a document may name


def test_a_remote_document_can_name_no_local_file(tmp_path: Path, api: StacApi) -> None:
    (tmp_path / "secret.tif").touch()
    base = api.address.removesuffix("/v1")
    places = {
        f"{tmp_path}/secret.tif": f"{base}{tmp_path}/secret.tif",
        "../../../etc/passwd.tif": f"{base}/etc/passwd.tif",
        "s3://bucket/a.tif": "s3://bucket/a.tif",
        f"file://{tmp_path}/secret.tif": None,
        f"file:{tmp_path}/secret.tif": None,
        f"NETCDF:{tmp_path}/secret.tif": None,
        "/vsicurl/http://x/a.tif": None,
        "/vsizip/a.zip/a.tif": f"{base}/vsizip/a.zip/a.tif",
    }
    for href, place in places.items():
        item = make_item("a")
        item.assets = {"a": pystac.Asset(href, media_type=COG, extra_fields={"eo:common_name": "red"})}
        api.documents = {"/x/item.json": item.to_dict()}
        (entry,) = read(f"{base}/x/item.json")
        assert (entry.refused is None) == (place is not None), href
        assert place is None or entry.location == place
    child = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "x"}
    for href in (f"file://{tmp_path}/catalog.json", f"{make_catalog(tmp_path)}"):
        api.documents = {"/c.json": {**child, "links": [{"rel": "child", "href": href}]}}
        (entry,) = read(f"{base}/c.json")
        assert entry.refused is not None


def test_a_local_document_leads_by_relative_links_only_into_the_folder_of_the_source(tmp_path: Path) -> None:
    make_catalog(tmp_path / "cat")
    item = tmp_path / "cat" / "a" / "a.json"
    text = item.read_text()
    for href, place in {
        "../a.tif": "cat/a/../a.tif",
        "../../out.tif": None,
        str(tmp_path / "out.tif"): "out.tif",
    }.items():
        item.write_text(text.replace("./a_B04.tif", href))
        by_catalog, by_itself = read(tmp_path / "cat" / "catalog.json")[0], read(item)[0]
        assert (by_catalog.refused is None) == (place is not None), href
        assert place is None or by_catalog.location == f"{tmp_path}/{place}"
        assert (by_itself.refused is None) == (href == str(tmp_path / "out.tif"))
    item.write_text(text.replace("./a_B04.tif", "../../out.tif"))
    assert read(item, root=str(tmp_path))[0].location == f"{tmp_path}/cat/a/../../out.tif"
    (tmp_path / "cat" / "link").symlink_to(tmp_path)
    item.write_text(text.replace("./a_B04.tif", "../link/out.tif"))
    assert "leads out of" in str(read(tmp_path / "cat" / "catalog.json")[0].refused)


def test_items_with_errors_are_refused_by_location_and_the_others_run(tmp_path: Path) -> None:
    good = make_item("good").to_dict()
    broken: list[Any] = [
        {**good, "id": 7},
        {**good, "properties": []},
        {**good, "properties": {"datetime": "soon"}},
        {**good, "assets": {"a": "a.tif"}},
        {**good, "assets": {"a": {"type": COG}}},
        {**good, "bbox": ["x"], "geometry": None},
        {**good, "geometry": {"type": "Polygon", "coordinates": "x"}},
        {**good, "links": 3},
        "nothing",
        {**good, "id": "good"},
    ]
    last = make_item("last").to_dict()
    path = write(tmp_path / "items.json", {"type": "FeatureCollection", "features": [*broken, last]})
    entries = read(path)
    assert [entry.id for entry in entries if entry.refused is None][-1] == "last"
    refused = {entry.id: entry.refused for entry in entries if entry.refused is not None}
    assert len(refused) >= 7
    assert all("invalid STAC Item" in str(message) for message in refused.values()), refused


def places_in(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys that lead to each value of a JSON document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield (*above, key)
        yield from places_in(document[key], (*above, key))


JUNK = (None, -1, True, math.inf, 10**400, "x", "\0", "../../x", [], [None], {}, {"a": 1}, [{"rel": "self"}])


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: ascii(junk)[:20])
def test_a_malformed_item_is_a_scene_or_an_error_and_nothing_else(junk: Any) -> None:
    item = make_item("a", clouds=5).to_dict()
    item["assets"]["B04"] |= {
        "raster:bands": [{"nodata": 0, "scale": 1}],
        "gsd": 10,
        "proj:transform": [1, 0, 0, 0, 1, 0],
    }
    item["links"] = [{"rel": "self", "href": "https://host/a.json"}]
    rules = ItemRules(spec=CatalogSpec(), drivers=("GTiff",))
    for *above, last in places_in(item):
        spoilt = copy.deepcopy(item)
        functools.reduce(lambda part, key: part[key], above, spoilt)[last] = junk
        row = item_row(spoilt, document_location("/data/a.json"), rules, label="a", itself=False)
        assert bool(row.path) != bool(row.error)


def test_items_are_selected_by_date_clouds_and_place_before_they_are_refused(tmp_path: Path) -> None:
    items = [make_item(f"s{k}", day=1 + k, lon=10 * k, clouds=10 * k) for k in range(5)]
    items[0].assets = items[4].assets = {}
    items[3].properties.pop("eo:cloud_cover")
    path = write(tmp_path / "items.json", pystac.ItemCollection(items).to_dict())
    assert ids(path, since="2026-05-02", until="2026-05-03", cloud_cover=10) == ["s1"]
    assert ids(path, bbox=(9, 0, 35, 1), limit=2) == ["s1", "s2"]
    left: list[tuple[str, str]] = []
    spec = CatalogSpec(cloud_cover=30, since="2026-05-02", bbox=(0, 0, 35, 1))
    entries = [*read_catalog([path], spec, on_excluded=lambda entry, why: left.append((entry.id, why)))]
    assert [entry.id for entry in entries] == ["s1", "s2", "s3"]
    assert left == [
        (f"{path}, feature 1", "was not taken between since and until"),
        (f"{path}, feature 5", "is too cloudy"),
    ]
    refusals = [entry.refused for entry in read(path, cloud_cover=40, since="2026-05-04")]
    assert ["has no eo:cloud_cover" in str(refusals[0]), "no asset is a raster" in str(refusals[1])] == [True, True]


def test_an_item_over_a_span_of_time_is_as_old_as_its_end(tmp_path: Path) -> None:
    item = make_item("a").to_dict()
    item["properties"] = {
        "datetime": None,
        "start_datetime": "2026-04-01T00:00:00Z",
        "end_datetime": "2026-05-01T00:00:00+02:00",
    }
    (entry,) = read(write(tmp_path / "item.json", item))
    assert entry.acquired == "2026-04-30T22:00:00Z"
