from __future__ import annotations

import json
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pyarrow.parquet
import pyogrio
import pyproj
import pytest
import shapely
from rasterio.crs import CRS
from support.fake_mosaic import NAMES, classes_source

from pipeline.errors import DamagedSceneError, SettingsError, TransientError
from pipeline.polygons.export import PolygonTotals, write_polygons
from pipeline.polygons.shaping import Polygons, PolygonSpec, shape_polygons
from pipeline.polygons.stream import vectorize
from pipeline.polygons.writer import GEOMETRY, LAYER

ROOT = Path(__file__).parents[2]
CLASSES = dict(enumerate(NAMES[1:], start=1))
COLUMNS = [
    *("class", "class_value", "area_m2", "perimeter_m", "mean_probability", "max_probability", "pixel_count"),
    *("scene", "model"),
]
ENDINGS = pytest.mark.parametrize("ending", ["gpkg", "fgb", "parquet"])
CUSTOM_CRS = "+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m +no_defs"


def some_polygons(seed: int = 0, *, connectivity: int = 4, crs: str = "EPSG:32633") -> Iterator[Polygons]:
    mask = np.random.default_rng(seed).integers(0, 5, (30, 40))
    source, spec = classes_source(mask, crs=crs), PolygonSpec(connectivity=connectivity)
    return shape_polygons(vectorize(source, spec, block_size=8), source.grid, spec)


def write(path: Path, polygons: Iterator[Polygons] | list[Polygons], *, crs: str = "EPSG:32633") -> PolygonTotals:
    return write_polygons(path, polygons, crs=CRS.from_user_input(crs), scene_id="s-1", model_id="abc", classes=CLASSES)


def read(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, layer=LAYER)


@ENDINGS
@pytest.mark.parametrize("connectivity", [4, 8])
def test_what_is_written_can_be_read(ending: str, connectivity: int, tmp_path: Path):
    path = tmp_path / f"polygons.{ending}"
    totals = write(path, some_polygons(connectivity=connectivity))
    table = read(path)
    expected = list(some_polygons(connectivity=connectivity))
    assert sorted(set(table.columns) - {"geometry", GEOMETRY}) == sorted(COLUMNS)
    assert len(table) == totals.count == sum(map(len, expected))
    assert set(table.geometry.geom_type) == {"MultiPolygon"}
    assert table.geometry.is_valid.all()
    area = sum(polygons.area_m2.sum() for polygons in expected)
    assert sum(totals.area_m2.values()) == pytest.approx(area) == pytest.approx(table.area_m2.sum())
    assert table.groupby("class").area_m2.sum().to_dict() == pytest.approx(totals.area_m2)
    assert (table["class"] == table.class_value.map(CLASSES)).all()
    assert set(table.scene) == {"s-1"}
    assert set(table.model) == {"abc"}
    measured = ["area_m2", "perimeter_m", "mean_probability", "max_probability", "pixel_count"]
    rows = np.concatenate([np.column_stack([getattr(each, name) for name in measured]) for each in expected])
    assert sorted(map(tuple, table[measured].to_numpy().tolist())) == sorted(map(tuple, rows.tolist()))
    geometry = np.concatenate([polygons.geometry for polygons in expected])
    assert table.geometry.union_all().equals(shapely.union_all(geometry))


@ENDINGS
def test_no_polygons_make_an_empty_layer_with_all_columns(ending: str, tmp_path: Path):
    path = tmp_path / f"polygons.{ending}"
    totals = write(path, [])
    assert totals == PolygonTotals(count=0, area_m2=dict.fromkeys(CLASSES.values(), 0.0))
    table = read(path)
    assert len(table) == 0
    assert sorted(set(table.columns) - {"geometry", GEOMETRY}) == sorted(COLUMNS)
    assert table.crs == pyproj.CRS.from_epsg(32633)


@ENDINGS
def test_equal_polygons_are_equal_bytes(ending: str, tmp_path: Path):
    first, second = (tmp_path / name / f"polygons.{ending}" for name in ("a", "b"))
    for path in (first, second):
        path.parent.mkdir()
        write(path, some_polygons())
    assert first.read_bytes() == second.read_bytes()


@ENDINGS
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:2193", CUSTOM_CRS])
def test_the_crs_survives(ending: str, crs: str, tmp_path: Path):
    path = tmp_path / f"polygons.{ending}"
    write(path, some_polygons(), crs=crs)
    table = read(path)
    assert table.crs == pyproj.CRS.from_user_input(crs)
    assert CRS.from_wkt(table.crs.to_wkt()) == CRS.from_user_input(crs)
    assert table.geometry.union_all().bounds[0] >= 500_000


@ENDINGS
def test_nothing_is_at_the_target_before_it_is_complete(ending: str, tmp_path: Path):
    path = tmp_path / f"polygons.{ending}"

    def checked() -> Iterator[Polygons]:
        for polygons in some_polygons():
            assert not path.exists()
            yield polygons

    write(path, checked())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@ENDINGS
def test_a_failure_leaves_nothing_and_is_reported(ending: str, tmp_path: Path):
    path = tmp_path / f"polygons.{ending}"

    def damaged() -> Iterator[Polygons]:
        yield next(some_polygons())
        raise DamagedSceneError("block 3 cannot be decoded")

    with pytest.raises(DamagedSceneError, match="block 3"):
        write(path, damaged())
    assert list(tmp_path.iterdir()) == []
    write(path, some_polygons())
    before = path.read_bytes()
    with pytest.raises(DamagedSceneError):
        write(path, damaged())
    assert path.read_bytes() == before


@ENDINGS
def test_a_killed_run_leaves_nothing_at_the_target(ending: str, tmp_path: Path):
    script = (
        "import os, signal, sys; from pathlib import Path; sys.path[:0] = ['tests', 'tests/polygons']\n"
        "import test_polygon_export as t\n"
        "def killed():\n"
        "    yield next(t.some_polygons())\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"t.write(Path({str(tmp_path / 'polygons')!r} + '.{ending}'), killed())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    path = tmp_path / f"polygons.{ending}"
    assert not path.exists()
    write(path, some_polygons())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@ENDINGS
@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_a_full_disk_is_reported_and_leaves_nothing(ending: str, share: float, tmp_path: Path):
    path, polygons = tmp_path / f"polygons.{ending}", list(some_polygons()) * 10
    write(path, polygons)
    size = path.stat().st_size
    path.unlink()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), hard))
    try:
        with pytest.raises(TransientError, match="polygons"):
            write(path, polygons)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("table", [LAYER, f"rtree_{LAYER}_{GEOMETRY}"])
def test_a_geopackage_that_lacks_a_row_is_not_published(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """GDAL builds the index when it closes the file, and reports no full disk then."""
    write_arrow = pyogrio.write_arrow

    def write_less(reader: object, path: Path, **options: object) -> None:
        write_arrow(reader, path, **options)
        with sqlite3.connect(path) as database:
            triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (trigger,) in triggers:
                database.execute(f'DROP TRIGGER "{trigger}"')
            database.execute(f"DELETE FROM {table} WHERE rowid = 1")

    monkeypatch.setattr(pyogrio, "write_arrow", write_less)
    with pytest.raises(TransientError, match=rf"{table} holds \d+ of \d+ polygons; is the disk full"):
        write(tmp_path / "polygons.gpkg", some_polygons())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_ending_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"\.gpkg, \.fgb, \.parquet"):
        write(tmp_path / "polygons.shp", some_polygons())


@ENDINGS
def test_a_folder_that_is_not_there_is_wrong_usage(ending: str, tmp_path: Path):
    with pytest.raises(SettingsError, match="nowhere"):
        write(tmp_path / "nowhere" / f"polygons.{ending}", some_polygons())


def test_the_style_names_the_layer_and_its_geometry_column(tmp_path: Path):
    path = tmp_path / "polygons.gpkg"
    write(path, some_polygons())
    with sqlite3.connect(path) as database:
        ((table, column, default, qml),) = database.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        )
        assert (table, column, default) == (LAYER, GEOMETRY, 1)
        assert database.execute("SELECT column_name FROM gpkg_geometry_columns").fetchall() == [(GEOMETRY,)]
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    root = ElementTree.fromstring(qml.partition("\n")[2])
    values = [category.get("value") for category in root.iter("category")]
    assert values == list(CLASSES.values())
    fills = [each.get("value") for each in root.iter("Option") if each.get("name") == "color"]
    assert len(set(fills)) == len(CLASSES)


def test_the_geopackage_is_of_version_1_3_with_a_spatial_index(tmp_path: Path):
    path = tmp_path / "polygons.gpkg"
    write(path, some_polygons())
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10300,)
        assert database.execute("SELECT count(*) FROM gpkg_extensions WHERE extension_name = 'gpkg_rtree_index'")
        assert database.execute("SELECT count(*) FROM rtree_polygons_geom").fetchone()[0] > 100
    info = pyogrio.read_info(path, layer=LAYER)
    assert info["geometry_type"] == "MultiPolygon"
    assert pyogrio.list_layers(path)[0].tolist() == [LAYER, "MultiPolygon"]


def test_names_with_quotes_and_markup_survive(tmp_path: Path):
    path = tmp_path / "it's [1].gpkg"
    classes = {1: 'roof <flat> & "steep"', 2: "Gewässer", 3: "a'b", 4: "x"}
    polygons = list(some_polygons())
    write_polygons(path, polygons, crs=CRS.from_epsg(32633), scene_id="s'1", model_id="", classes=classes)
    assert set(read(path)["class"]) == set(classes.values())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_options_of_gdal_are_as_before(tmp_path: Path):
    write(tmp_path / "polygons.gpkg", some_polygons())
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None


def test_totals_add_up_over_batches():
    totals, batches = PolygonTotals(), list(some_polygons(seed=1))
    for batch in (*batches, *batches):
        totals.add(batch, CLASSES)
    assert totals.count == 2 * sum(map(len, batches))
    for value, name in CLASSES.items():
        once = sum(float(batch.area_m2[batch.class_value == value].sum()) for batch in batches)
        assert totals.area_m2[name] == pytest.approx(2 * once)


@ENDINGS
def test_two_files_written_at_once_are_those_written_one_after_the_other(ending: str, tmp_path: Path):
    """One ends while the other is half written; neither gets the time of day."""
    paths = {name: tmp_path / f"{name}.{ending}" for name in ("alone", "outer", "inner")}
    halves = [*some_polygons(seed=1), *some_polygons(seed=2)]
    write(paths["alone"], halves)

    def with_another_inside() -> Iterator[Polygons]:
        yield halves[0]
        inner = threading.Thread(target=write, args=(paths["inner"], halves))
        inner.start()
        inner.join()
        yield from halves[1:]

    write(paths["outer"], with_another_inside())
    assert paths["outer"].read_bytes() == paths["inner"].read_bytes() == paths["alone"].read_bytes()


def test_a_geoparquet_file_describes_its_geometry(tmp_path: Path):
    write(tmp_path / "polygons.parquet", some_polygons())
    geo = json.loads(pyarrow.parquet.read_schema(tmp_path / "polygons.parquet").metadata[b"geo"])
    (column,) = geo["columns"].values()
    assert {key: column[key] for key in ("encoding", "geometry_types", "orientation", "edges")} == {
        "encoding": "WKB",
        "geometry_types": ["MultiPolygon"],
        "orientation": "counterclockwise",
        "edges": "planar",
    }
    exterior = shapely.get_exterior_ring(shapely.get_parts(read(tmp_path / "polygons.parquet").geometry.to_numpy()))
    assert shapely.is_ccw(exterior).all()
