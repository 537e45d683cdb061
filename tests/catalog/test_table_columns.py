"""Lists and tables of scenes: equal names, hidden files, limits, layers and bounds that meet."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import pyarrow
import pyarrow.parquet
import pytest
import shapely
from conftest import MakeScene
from support.object_stores import Store

from pipeline.catalog.entry import CatalogEntry
from pipeline.catalog.read import list_scenes, read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.errors import SettingsError


def read(*sources: Path | str, area: Path | None = None, **spec: object) -> list[CatalogEntry]:
    return [*read_catalog(sources, CatalogSpec(**spec), area=area)]  # type: ignore[arg-type]


def test_stems_that_differ_in_case_alone_are_called_by_their_folders(tmp_path: Path) -> None:
    for name in ("x/Town.tif", "y/town.tif"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = list_scenes([tmp_path / "x", tmp_path / "y"])
    assert [entry.id for entry in found] == ["x_Town", "y_town"]


def test_one_file_under_two_names_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tif").touch()
    monkeypatch.chdir(tmp_path)
    assert [entry.location for entry in list_scenes(["a.tif", tmp_path / "a.tif"])] == ["a.tif"]


def test_hidden_files_of_a_folder_are_no_scenes(tmp_path: Path) -> None:
    for name in ("a.tif", ".a.tif.partial.tif", "._b.tif"):
        (tmp_path / name).touch()
    assert [entry.id for entry in list_scenes([tmp_path])] == ["a"]


def test_a_limit_counts_the_scenes_that_are_selected(tmp_path: Path) -> None:
    table = tmp_path / "scenes.csv"
    table.write_text("path,date\na.tif,2024-01-01\nb.tif,2025-01-01\nc.tif,2025-01-02\nd.tif,2025-01-03\n")
    assert [entry.id for entry in read(table, since="2025-01-01", limit=2)] == ["b", "c"]


def test_two_columns_of_ids_are_none(tmp_path: Path) -> None:
    table = tmp_path / "scenes.csv"
    table.write_text("path,id,ID\na.tif,x,y\n")
    assert [entry.id for entry in read(table)] == ["a"]
    assert [entry.id for entry in read(table, id_column="ID")] == ["y"]


def test_a_span_of_one_moment_is_one() -> None:
    CatalogSpec(since="2024-01-01T00:00:00Z", until="2024-01-01T00:00:00Z")
    with pytest.raises(SettingsError, match="since must not be later than until"):
        CatalogSpec(since="2024-01-01T00:00:01Z", until="2024-01-01T00:00:00Z")


def test_a_file_with_two_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scenes.gpkg"
    frame = geopandas.GeoDataFrame({"path": ["a.tif"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326")
    for layer in ("one", "two"):
        frame.to_file(path, layer=layer, driver="GPKG")
    with pytest.raises(SettingsError, match="the layers one, two all have a column of paths"):
        read(path)


def test_footprints_of_geoparquet_without_a_crs_are_longitudes_and_latitudes(tmp_path: Path) -> None:
    """As the format says; `null` means that the CRS is not known."""
    geo = {"version": "1.1.0", "primary_column": "g", "columns": {"g": {"encoding": "WKB", "geometry_types": []}}}
    table = pyarrow.table({"path": ["a.tif"], "g": [shapely.to_wkb(shapely.box(10, 10, 11, 11))]})
    path = tmp_path / "scenes.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    assert [entry.id for entry in read(path, bbox=(10.5, 10.5, 20, 20))] == ["a"]
    assert read(path, bbox=(30, 30, 40, 40)) == []


def test_a_scene_that_an_area_covers_whole_touches_it(make_scene: MakeScene, tmp_path: Path) -> None:
    scene, area = make_scene(), tmp_path / "area.gpkg"
    place = shapely.box(499_000, 5_399_000, 501_000, 5_401_000)
    geopandas.GeoSeries([place], crs="EPSG:32633").to_file(area)
    assert [entry.location for entry in read(scene, area=area)] == [str(scene)]
    geopandas.GeoSeries([shapely.box(0, 0, 1, 1)], crs="EPSG:32633").to_file(area)
    assert read(scene, area=area) == []


def test_objects_are_known_by_their_suffix_in_any_case(store: Store) -> None:
    for name in ("in/a.tif", "in/b.TIF", "in/c.Tiff", "in/d.txt"):
        store.put(name, b"")
    assert [entry.id for entry in list_scenes([f"s3://{store.bucket}/in/"])] == ["a", "b", "c"]


@pytest.mark.parametrize("column", ["path_column", "id_column", "date_column"])
def test_a_column_of_the_settings_that_is_there_twice_or_never_is_refused(tmp_path: Path, column: str) -> None:
    table = tmp_path / "scenes.csv"
    for names, found in (("path,when,when", "more than one column"), ("path,b,c", "no column")):
        table.write_text(f"{names}\na.tif,1,2\n")
        with pytest.raises(SettingsError, match=f"{found} is called 'when', which catalog.{column} names"):
            read(table, **{column: "when"})


def test_a_scene_that_is_listed_again_is_the_same_scene_and_no_error(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tif").touch()
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("path\na.tif\nb.tif\na.tif\n")
    other.write_text("path,id\nb.tif,another\na.tif,a\n")
    assert [(entry.id, entry.refused) for entry in read(one, other)] == [("a", None), ("b", None)]
    assert [(entry.id, entry.refused) for entry in read(tmp_path / "b.tif", one)] == [("b", None), ("a", None)]
