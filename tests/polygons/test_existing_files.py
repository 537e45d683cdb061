"""Existing vector files: polygons made again replace our own layer only, and never another person's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas
import pyogrio
import pytest
import shapely
from conftest import Call, MakeScene

from pipeline.errors import SettingsError, TransientError
from pipeline.polygons.existing import check_replaceable, layer_of
from pipeline.polygons.writer import LAYER

FAST = [
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1", "--set", "run.retries=0"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
]


@pytest.fixture
def mosaic(call: Call, make_scene: MakeScene, tmp_path: Path, model: str) -> Path:
    assert call("segment", make_scene(name="a.tif"), "--model", model, "--out", tmp_path / "out", *FAST)[0] == 0
    return tmp_path / "out" / "a" / "probability.tif"


def of_user(path: Path, *layers: str) -> Path:
    """A file of a user: roads and parcels, with a style each."""
    frame = geopandas.GeoDataFrame({"owner": ["me"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:3857")
    for layer in layers or ("roads", "parcels"):
        pyogrio.write_dataframe(frame, path, layer=layer)
    if path.suffix == ".gpkg":
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT)")
            database.execute("INSERT INTO notes VALUES ('mine')")
    return path


def rows(path: Path, table: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f'SELECT * FROM "{table}"').fetchall()


def layers(path: Path) -> set[str]:
    return {str(name) for name in pyogrio.list_layers(path)[:, 0]}


def test_a_file_with_layers_of_others_is_not_replaced(mosaic: Path, call: Call, tmp_path: Path) -> None:
    for names in (("roads", "parcels"), ("polygons", "roads"), ("polygons",)):
        path = of_user(tmp_path / f"{len(names)}{names[0]}.gpkg", *names)
        before = path.read_bytes()
        code, _, stderr = call("vectorize", mosaic, "--out", path)
        assert code == 2
        assert "which would be lost; name another file, write one layer of it with --layer NAME" in stderr
        assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["x.fgb", "x.parquet"])
def test_other_files_with_other_columns_are_not_replaced(mosaic: Path, call: Call, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frame = geopandas.GeoDataFrame({"owner": ["me"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:3857")
    frame.to_parquet(path) if name.endswith("parquet") else pyogrio.write_dataframe(frame, path)
    before = path.read_bytes()
    code, _, stderr = call("vectorize", mosaic, "--out", path)
    assert (code, "other columns than polygons of Scenemill, which would be lost" in stderr) == (2, True)
    assert path.read_bytes() == before
    assert call("vectorize", mosaic, "--out", path, "--overwrite")[0] == 0
    assert call("vectorize", mosaic, "--out", path)[0] == 0  # it is ours now


@pytest.mark.parametrize("content", [b"", b"text", b"SQLite format 3\0" + bytes(100)])
@pytest.mark.parametrize("name", ["x.gpkg", "x.fgb", "x.parquet"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read as polygons"):
        check_replaceable(tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_overwrite_replaces_the_whole_file(mosaic: Path, call: Call, tmp_path: Path) -> None:
    path = of_user(tmp_path / "mine.gpkg")
    assert call("vectorize", mosaic, "--out", path, "--overwrite")[0] == 0
    assert layers(path) == {LAYER, "layer_styles"}
    assert path.read_bytes() == (mosaic.parent / "polygons.gpkg").read_bytes()


def test_a_layer_is_added_and_replaced_and_everything_else_stays(mosaic: Path, call: Call, tmp_path: Path) -> None:
    path = of_user(tmp_path / "mine.gpkg")
    roads, notes = rows(path, "roads"), rows(path, "notes")
    assert call("vectorize", mosaic, "--out", path, "--layer", "large roofs")[0] == 0
    found = geopandas.read_file(path, layer="large roofs")
    expected = geopandas.read_file(mosaic.parent / "polygons.gpkg", layer=LAYER)
    assert found.drop(columns="geometry").equals(expected.drop(columns="geometry"))
    assert found.geometry.geom_equals(expected.geometry).all()
    assert found.crs == expected.crs
    assert layers(path) >= {"roads", "parcels", "large roofs", "layer_styles"}
    assert (rows(path, "roads"), rows(path, "notes")) == (roads, notes)
    assert [row[3] for row in rows(path, "layer_styles")] == ["large roofs"]

    # The style that a user gave the layer since stays, as do those of other layers.
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE layer_styles SET styleName = 'my own'")
        database.execute("INSERT INTO layer_styles (f_table_name, styleName) VALUES ('roads', 'wide')")
    code, _, _ = call("vectorize", mosaic, "--out", path, "--layer", "large roofs", "--set", "polygons.min_area_m2=3")
    assert code == 0
    assert len(geopandas.read_file(path, layer="large roofs")) < len(expected)
    assert [(row[3], row[5]) for row in rows(path, "layer_styles")] == [("large roofs", "my own"), ("roads", "wide")]
    assert (rows(path, "roads"), rows(path, "notes")) == (roads, notes)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_layer_of_a_new_file(mosaic: Path, call: Call, tmp_path: Path) -> None:
    assert call("vectorize", mosaic, "--out", tmp_path / "new.gpkg", "--layer", "roofs")[0] == 0
    assert layers(tmp_path / "new.gpkg") == {"roofs", "layer_styles"}


@pytest.mark.parametrize(
    "name", ["gpkg_contents", "rtree_x", "layer_styles", 'a"b', "", "1st", "x" * 64, "a;b", "\x1b[2J"]
)
def test_a_name_that_no_layer_can_have_is_refused(mosaic: Path, call: Call, tmp_path: Path, name: str) -> None:
    path = of_user(tmp_path / "mine.gpkg")
    before = path.read_bytes()
    code, _, stderr = call("vectorize", mosaic, "--out", path, f"--layer={name}")
    assert (code, "a layer is named with at most 63 letters" in stderr) == (2, True)
    assert path.read_bytes() == before


def test_a_layer_needs_a_geopackage(mosaic: Path, call: Call, tmp_path: Path) -> None:
    code, _, stderr = call("vectorize", mosaic, "--out", tmp_path / "x.fgb", "--layer", "a")
    assert (code, "only a GeoPackage (.gpkg) has layers" in stderr) == (2, True)
    (tmp_path / "text.gpkg").write_text("mine")
    code, _, stderr = call("vectorize", mosaic, "--out", tmp_path / "text.gpkg", "--layer", "a")
    assert (code, "is no GeoPackage" in stderr) == (2, True)
    code, _, stderr = call("vectorize", mosaic, "--out", tmp_path / "x.gpkg", "--layer", "a", "--overwrite")
    assert (code, "--layer has no effect with --overwrite" in stderr) == (2, True)
    assert (tmp_path / "text.gpkg").read_text() == "mine"


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = of_user(tmp_path / "mine.gpkg")
    before = path.read_bytes()

    def fail() -> None:
        with layer_of(path, "roofs") as file:
            file.write_text("half")
            raise TransientError("the disk is full")

    with pytest.raises(TransientError):
        fail()
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["mine.gpkg"]


@pytest.mark.parametrize("options", [("--overwrite",), ("--layer", "roofs")])
def test_a_file_with_unsaved_changes_of_another_program_is_not_replaced(
    mosaic: Path, call: Call, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """SQLite would apply them to the new file."""
    path = of_user(tmp_path / "mine.gpkg")
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("INSERT INTO notes VALUES ('not saved')")
        database.commit()
        before = path.read_bytes()
        code, _, stderr = call("vectorize", mosaic, "--out", path, *options)
        assert (code, "has it open with changes in mine.gpkg-wal" in stderr) == (1, True)
        assert path.read_bytes() == before


def test_unsaved_changes_of_a_previous_result_are_not_applied_to_a_new_one(
    call: Call, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scene, out = make_scene(name="a.tif"), tmp_path / "out"
    command = ["segment", scene, "--model", model, "--out", out, *FAST]
    assert call(*command)[0] == 0
    (out / "a" / "notes.txt").write_text("mine")
    with closing(sqlite3.connect(out / "a" / "polygons.gpkg")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE more (x)")
        database.commit()
        assert (out / "a" / "polygons.gpkg-wal").is_file()
        assert call(*command, "--set", "polygons.min_area_m2=3")[0] == 0
    assert sorted(path.name for path in (out / "a").iterdir() if "-" in path.name) == []
    assert (out / "a" / "notes.txt").read_text() == "mine"
