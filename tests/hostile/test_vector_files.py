"""Vector files make their reader fetch nothing and wait for nothing: areas, catalogs, labels, polygons of results."""

from __future__ import annotations

import faulthandler
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import pytest
import shapely
from conftest import Call
from support.hostile_rasters import Loot

from pipeline.errors import LabelError, SceneError, SettingsError
from pipeline.evaluation.result_files import is_own_file, read_own_polygons
from pipeline.grid import load_area
from pipeline.merge.scenes import _plain_table
from pipeline.storage import check_vector, import_pyogrio
from pipeline.storage.formats import vectors
from pipeline.training.labels.vectors import read_areas

DEADLINE_S = 60
"""After this, a test that hangs is ended; the tests take a second."""
SQUARE = {"type": "Polygon", "coordinates": [[[15, 48], [15.1, 48], [15.1, 48.1], [15, 48]]]}
LINK = {"type": "link", "properties": {"href": "URL/evil.crs", "type": "ogcwkt"}}


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """GDAL computes a view without an end in C code; this ends the test with the place."""
    faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def collection(*, geometry: object = SQUARE, properties: object = None, **members: object) -> dict[str, object]:
    feature = {"type": "Feature", "properties": properties or {"path": "a.tif"}, "geometry": geometry}
    return {"type": "FeatureCollection", **members, "features": [feature]}


def check_refused(path: Path, call: Call, words: str) -> None:
    """Refused as area, catalog and labels, with the words."""
    with pytest.raises(SettingsError, match=words):
        load_area(path)
    with pytest.raises(LabelError, match=words):
        read_areas(path)
    code, _, err = call("catalog", path)
    assert code == 2
    assert words in " ".join(err.split())


# GeoJSON

CRS_LINKS: dict[str, str] = {
    "of the file": json.dumps(collection(crs=LINK)),
    "of a geometry": json.dumps(collection(geometry={**SQUARE, "crs": LINK})),
    "in capitals": json.dumps(collection(CRS={"TYPE": "LINK", "PROPERTIES": {"HREF": "URL/evil.crs"}})),
    "escaped": json.dumps(collection(crs=LINK)).replace('"crs"', '"\\u0063\\u0052s"'),
    "of type url": json.dumps(collection(crs={"type": "url", "properties": {"url": "URL/evil.crs"}})),
    "after a name": json.dumps(collection(crs={"type": "name", "properties": {"name": "EPSG:4326"}}))[:-1]
    + f', "crs": {json.dumps(LINK)}' + "}",
    "twice in one": json.dumps(collection(crs=LINK)).replace('"type": "link"', '"type": "name", "TYPE": "link"'),
    "after blanks": json.dumps(collection(crs=LINK)).replace('"crs":', '"crs"' + " " * 9000 + ":" + " " * 9000),
    "after much data": json.dumps({"x": "\\" * 2**20, "y": [0] * 2**20} | collection())[:-1]
    + f', "crs": {json.dumps(LINK)}' + "}",
    "named by an address": json.dumps(collection(crs={"type": "name", "properties": {"name": "URL/evil.crs"}})),
    "named by a file": json.dumps(collection(crs={"type": "name", "properties": {"name": "/etc/passwd"}})),
}  # fmt: skip
"""Where the member is -> a file with it."""


@pytest.mark.parametrize("case", CRS_LINKS)
def test_a_crs_by_link_is_not_followed(case: str, loot: Loot, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    path.write_text(CRS_LINKS[case].replace("URL", loot.url))
    check_refused(path, call, "its member crs is no plain name of a CRS")
    assert loot.requests == []


def test_most_of_these_would_be_fetched_by_gdal(loot: Loot, tmp_path: Path) -> None:
    """So that the tests above would notice."""
    found = []
    for number, case in enumerate(("of the file", "of a geometry", "in capitals", "escaped", "of type url")):
        path = tmp_path / f"{number}.geojson"
        path.write_text(CRS_LINKS[case].replace("URL", loot.url.replace("127.0.0.1", "localhost")))
        import_pyogrio().read_dataframe(path)
        found.append(len(loot.requests))
    loot.log.write_text("")
    assert all(one < more for one, more in pairwise([0, *found])), found


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(collection(crs=LINK)).replace('"crs"', "'crs'"),
        json.dumps(collection(crs=LINK)).replace('"crs":', '"crs"/* a name */:'),
        json.dumps(SQUARE)[:-1] + ", 'crs': {'type': 'link', 'properties': {'href': 'URL/evil.crs'}}}",
        json.dumps(collection()) + "\x1e",
        '{"type": "FeatureCollection", "features": [], "unfinished',
    ],
)
def test_what_only_some_readers_take_for_json_is_refused(text: str, loot: Loot, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    path.write_text(text.replace("URL", loot.url))
    check_refused(path, call, "not JSON at")
    assert loot.requests == []


@pytest.mark.parametrize(
    "member",
    [
        {},
        {"crs": None},
        {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}},
        {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::4326"}}},
        {"crs": {"type": "name", "properties": {"name": "EPSG:4326"}}},
        {"crs": {"type": "name", "properties": {"name": "http://www.opengis.net/def/crs/OGC/1.3/CRS84"}}},
        {"name": 'crs": {"type": "link"', "description": "crs"},
        {"properties": {"path": "a.tif", "crs": "EPSG:32633"}},
    ],
)
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \t"])
def test_geojson_as_programs_write_it_is_accepted(member: dict[str, Any], start: str, tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    path.write_text(start + json.dumps(collection(**member), indent=2))
    check_vector(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_a_member_is_found_wherever_the_file_is_cut(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(vectors, "MAX_CRS_BYTES", 200)
    path = tmp_path / "x.geojson"
    good = {"type": "name", "properties": {"name": "EPSG:4326"}}
    path.write_text(json.dumps(collection(**{'a\\"b': "c\\\\", "crs": good})))
    check_vector(path)
    path.write_text(json.dumps(collection(**{'a\\"b': "c\\\\", "cRs": LINK})))
    with pytest.raises(SettingsError, match="no plain name"):
        check_vector(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type": "FeatureCollection", "features": ' + "[" * 300_000, "cannot be read"),
        ('{"type": "Polygon", "coordinates": ' + "[" * 300_000 + "]" * 300_000 + "}", "cannot be read"),
        ('{"crs": {"type": ' + '{"a":' * 300_000 + "1" + "}" * 300_000 + "}}", "no plain name"),
        (json.dumps(collection(properties={f"key{n}": n for n in range(5000)})), "over 4096 different keys"),
        (json.dumps(collection(name="x" * (2**24 + 2**20))), "has a text of over 16777216 bytes"),
    ],
    ids=["open brackets", "nested brackets", "a nested crs", "keys", "a text"],
)  # fmt: skip
def test_geojson_that_costs_without_bound_is_refused(text: str, words: str, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "x.geojson"
    path.write_text(text)
    check_refused(path, call, words)


# Other formats

ENDLESS = "WITH RECURSIVE n(fid) AS (SELECT 1 UNION ALL SELECT fid + 1 FROM n) "
HARM: dict[str, tuple[str, str]] = {
    "an endless view": (
        f"DROP TABLE x; CREATE VIEW x AS {ENDLESS} SELECT fid, NULL AS geom, 'a.tif' AS path FROM n",
        "'x' is a view or virtual table",
    ),
    "a view of huge texts": (
        "CREATE VIEW y AS SELECT 1 AS fid, hex(zeroblob(200000000)) AS path",
        "'y' is a view or virtual table",
    ),
    "a view in place of the contents": (
        f"ALTER TABLE gpkg_contents RENAME TO old; CREATE VIEW gpkg_contents AS {ENDLESS} SELECT old.* FROM old, n",
        "'gpkg_contents' is a view or virtual table",
    ),
    "a generated column": (
        "ALTER TABLE x ADD COLUMN more TEXT GENERATED ALWAYS AS (hex(zeroblob(200000000))) VIRTUAL",
        "the table 'x' has generated columns",
    ),
    "a full-text table": ("CREATE VIRTUAL TABLE z USING fts4(a)", "'z' is a view or virtual table"),
}
"""What is done to a GeoPackage -> the words of the refusal."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A GeoPackage with the layer x of one row."""
    path = tmp_path / "x.gpkg"
    frame = geopandas.GeoDataFrame({"path": ["a.tif"]}, geometry=[shapely.box(15, 48, 16, 49)], crs=4326)
    frame.to_file(path, layer="x")
    return path


@pytest.mark.parametrize("case", HARM)
def test_a_geopackage_that_computes_its_rows_is_refused_at_once(case: str, package: Path, call: Call) -> None:
    statements, words = HARM[case]
    with sqlite3.connect(package) as database:
        database.executescript(statements)
    check_refused(package, call, words)


def test_a_view_that_is_in_the_journal_only_is_refused(package: Path, call: Call) -> None:
    database = sqlite3.connect(package)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript("CREATE VIEW y AS SELECT 1 AS fid, 'a.tif' AS path")
    assert package.with_name("x.gpkg-wal").stat().st_size
    check_refused(package, call, "'y' is a view or virtual table")
    database.close()


def test_polygons_of_a_result_are_checked_like_those_of_others(package: Path, tmp_path: Path) -> None:
    with sqlite3.connect(package) as database:
        database.executescript(HARM["an endless view"][0])
    assert not is_own_file(package)
    with pytest.raises(LabelError, match="is a view or virtual table"):
        read_own_polygons(package, ("building",))
    with pytest.raises(SceneError, match=r"is a view or virtual table.*delete the folder of the scene"):
        _plain_table(package)


def test_an_ordinary_geopackage_is_accepted(package: Path, tmp_path: Path) -> None:
    """With its spatial index, styles and a second layer; also where its folder cannot be written."""
    frame = geopandas.GeoDataFrame({"style": ["s"]}, geometry=[None], crs=4326)
    frame.to_file(package, layer="layer_styles")
    check_vector(package)
    with sqlite3.connect(package) as database:
        assert database.execute("SELECT 1 FROM sqlite_master WHERE sql LIKE '%USING rtree%'").fetchall()


def test_a_damaged_geopackage_is_called_unreadable(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "x.gpkg"
    path.write_bytes(b"SQLite format 3\0" + bytes(4000))
    check_refused(path, call, "cannot be read")


def write_shapefile(folder: Path, crs: str) -> Path:
    geopandas.GeoDataFrame({"path": ["a.tif"]}, geometry=[shapely.box(15, 48, 16, 49)], crs=4326).to_file(
        folder / "x.shp"
    )
    for suffix in (".prj", ".cpg"):
        (folder / f"x{suffix}").write_text(crs)
    return folder / "x.shp"


def write_flatgeobuf(folder: Path, crs: str) -> Path:
    path = folder / "x.fgb"
    geopandas.GeoDataFrame({"path": ["a.tif"]}, geometry=[shapely.box(15, 48, 16, 49)], crs=4326).to_file(path)
    content = path.read_bytes()
    start = content.find(b"GEOGCRS")
    stop = content.find(b"\0", start)
    assert start > 0
    path.write_bytes(content[:start] + crs.encode().ljust(stop - start) + content[stop:])
    return path


def write_geopackage(folder: Path, crs: str) -> Path:
    path = folder / "x.gpkg"
    geopandas.GeoDataFrame({"path": ["a.tif"]}, geometry=[shapely.box(15, 48, 16, 49)], crs=4326).to_file(path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE gpkg_spatial_ref_sys SET definition = ? WHERE srs_id = 4326", [crs])
    return path


@pytest.mark.parametrize("write", [write_shapefile, write_flatgeobuf, write_geopackage])
@pytest.mark.parametrize("crs", ["URL/evil.crs", "/vsicurl/URL/evil.crs", "FIFO"])
@pytest.mark.filterwarnings("ignore")
def test_a_crs_in_another_format_is_never_an_address(
    write: Callable[[Path, str], Path], crs: str, loot: Loot, tmp_path: Path
) -> None:
    path = write(tmp_path, crs.replace("URL", loot.url).replace("FIFO", str(loot.fifo)))
    with suppress(SettingsError):  # Unless GDAL finds the CRS by its code.
        load_area(path)
    assert loot.requests == []
