"""Lists and tables of scenes: read row by row, errors refuse single rows, relative paths stay inside the root."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import geopandas
import pyarrow
import pyarrow.parquet
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import MakeScene

from pipeline.catalog.entry import CatalogEntry
from pipeline.catalog.read import read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.errors import SettingsError

TABLES = ("t.gpkg", "t.geojson", "t.parquet", "t.geoparquet", "t.csv")


def read(*sources: Path | str, **spec: object) -> list[CatalogEntry]:
    return [*read_catalog(sources, CatalogSpec(**spec))]  # type: ignore[arg-type]


def ids(*sources: Path | str, **spec: object) -> list[str]:
    """Ids of the scenes that are not refused."""
    return [entry.id for entry in read(*sources, **spec) if entry.refused is None]


def refusals(*sources: Path | str, **spec: object) -> list[str]:
    return [f"{entry.id}: {entry.refused}" for entry in read(*sources, **spec) if entry.refused is not None]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(path: Path, paths: Sequence[str | None], *, crs: str = "EPSG:4326", step: float = 10, **more: object) -> Path:
    """A table of scenes whose footprints are squares of a unit, `step` units apart along x."""
    footprints = [shapely.box(step * k, 0, step * k + 1, 1) for k in range(len(paths))]
    frame = geopandas.GeoDataFrame({"path": paths, **more}, geometry=footprints, crs=crs)
    if path.suffix == ".csv":
        frame.drop(columns="geometry").to_csv(path, index=False)
    elif path.suffix.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


# Text lists


def test_a_list_names_a_scene_a_line_relative_to_itself(tmp_path: Path) -> None:
    lines = "\ufeff# tonight\n\n  sub/a.tif  \nb.tif\r\nhttps://host/c.tif?sig=1\n/data/d.tif\n"
    entries = read(write(tmp_path / "list.txt", lines))
    assert [(entry.id, entry.location) for entry in entries] == [
        ("a", f"{tmp_path}/sub/a.tif"),
        ("b", f"{tmp_path}/b.tif"),
        ("c", "https://host/c.tif?sig=1"),
        ("d", "/data/d.tif"),
    ]
    assert all(entry.refused is None for entry in entries)


def test_scenes_named_by_themselves_come_before_those_of_lists_and_all_run_once(make_scene: MakeScene) -> None:
    scene = make_scene(name="a.tif")
    first = write(scene.parent / "first.txt", "b.tif\na.tif\n")
    second = write(scene.parent / "second.TXT", "./b.tif\nc.tif\n")
    assert ids(first, scene, second, first) == ["a", "b", "c"]


def test_lists_are_read_no_further_than_scenes_are_asked_for(tmp_path: Path) -> None:
    index = write(tmp_path / "list.txt", "".join(f"scene{k}.tif\n" for k in range(200_000)))
    entries = read_catalog([index])
    assert [entry.id for entry in islice(entries, 2)] == ["scene0", "scene1"]
    index.write_bytes(b"")  # what was not read yet is gone, except for the buffered part
    assert sum(1 for _ in entries) < 2_000


# Tables


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_kind_name_scenes_by_their_columns(tmp_path: Path, name: str) -> None:
    index = table(tmp_path / name, ["sub/a.tif", "/data/b.tif"], id=["north", "south"], date=["2026-01-01", "-"])
    assert read(index) == [
        CatalogEntry(id="north", location=f"{tmp_path}/sub/a.tif", acquired="2026-01-01T00:00:00Z"),
        CatalogEntry(id="south", location="/data/b.tif"),
    ]


@pytest.mark.parametrize("name", TABLES)
def test_columns_of_other_names_are_named_in_the_settings(tmp_path: Path, name: str) -> None:
    index = table(tmp_path / name, ["x.tif"], image=["a.tif"], tile=["T33"])
    assert ids(index) == ["x"]
    assert read(index, path_column="image", id_column="tile") == [CatalogEntry(id="T33", location=f"{tmp_path}/a.tif")]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("columns", "spec", "message"),
    [
        ({"href": ["b.tif"]}, {}, "path and href could all hold the paths; .* catalog.path_column"),
        ({}, {"path_column": "image"}, "no column is called 'image', which catalog.path_column names; it has path"),
        ({}, {"id_column": "tile"}, "no column is called 'tile', which catalog.id_column names"),
        ({}, {"date_column": "day"}, "no column is called 'day', which catalog.date_column names"),
    ],
)
def test_missing_or_ambiguous_columns_are_reported_at_once(
    tmp_path: Path, name: str, columns: dict[str, object], spec: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_catalog([table(tmp_path / name, ["a.tif"], **columns)], CatalogSpec(**spec))  # type: ignore[arg-type]


def test_a_table_without_paths_is_reported_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no column is called path; .* its columns are file, date"):
        read_catalog([write(tmp_path / "t.csv", "file,date\na.tif,x\n")])


@pytest.mark.parametrize("text", ["ID;Path\nx;a.tif\n", "id\tPATH\nx\ta.tif\n", '\ufeffpath,"id"\n"a.tif",x\n'])
def test_csv_may_be_cut_by_commas_semicolons_or_tabs(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path / "t.csv", text)) == [CatalogEntry(id="x", location=f"{tmp_path}/a.tif")]


def test_a_layer_without_paths_may_lie_next_to_the_one_with(tmp_path: Path) -> None:
    index = table(tmp_path / "t.gpkg", ["a.tif"])
    styles = geopandas.GeoDataFrame({"style": ["x"]}, geometry=[shapely.Point(0, 0)], crs="EPSG:4326")
    styles.to_file(index, layer="styles")
    assert ids(index) == ["a"]
    styles.rename(columns={"style": "href"}).to_file(index, layer="more")
    with pytest.raises(SettingsError, match="the layers t, more all have a column of paths"):
        read_catalog([index])


def test_parquet_without_geometry_is_a_table_too(tmp_path: Path, make_scene: MakeScene) -> None:
    make_scene(name="a.tif", transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000))
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.tif"]}), tmp_path / "t.parquet")
    assert ids(tmp_path / "t.parquet") == ["a"]
    assert ids(tmp_path / "t.parquet", bbox=(14, 48, 16, 49)) == ["a"]
    assert ids(tmp_path / "t.parquet", bbox=(16, 48, 17, 49)) == []


@pytest.mark.parametrize("name", ["t.gpkg", "t.geojson", "t.parquet"])
def test_a_file_whose_content_contradicts_its_suffix_is_not_opened(tmp_path: Path, name: str) -> None:
    vrt = "<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>/etc/passwd</SrcDataSource></OGRVRTLayer></...>"
    with pytest.raises(SettingsError, match=r"does not begin like a \.\w+ file"):
        read_catalog([write(tmp_path / name, vrt)])


@pytest.mark.parametrize("name", ["t.gpkg", "t.geojson", "t.parquet"])
def test_a_truncated_table_is_reported_at_once(tmp_path: Path, name: str) -> None:
    index = table(tmp_path / name, ["a.tif"])
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(SettingsError, match="cannot be read as an index of scenes"):
        read_catalog([index])


@pytest.mark.parametrize("source", ["gone.csv", "gone.txt", "gone.gpkg"])
def test_a_missing_list_is_reported_at_once(tmp_path: Path, source: str) -> None:
    with pytest.raises(SettingsError, match="No such file or directory; check the path"):
        read_catalog([tmp_path / source])


def test_lists_behind_addresses_are_not_fetched() -> None:
    with pytest.raises(SettingsError, match="read from local files only; fetch it first"):
        read_catalog(["https://host/list.csv?sig=1"])


# Rows with errors


def test_a_broken_row_is_refused_with_its_line_and_the_others_run(tmp_path: Path) -> None:
    lines = [b"path,date", b"a.tif,1", b"b.tif", b",3", b'"c\nd.tif",4', b"\xff.tif,6", b"", b"e.tif,8", b"f.tif,9,9"]
    index = write(tmp_path / "t.csv", b"\n".join(lines))
    assert ids(index) == ["a", "e"]
    message = [
        "line 3: has 1 columns, the first line 2",
        "line 4: the row has no path",
        "line 5: 'c\\nd.tif' holds a line",
    ]
    message += ["line 7: '\N{REPLACEMENT CHARACTER}.tif' holds a line break or is not UTF-8", "line 10: has 3 columns"]
    found = refusals(index)
    assert [text.startswith(f"{index}, {start}") for text, start in zip(found, message, strict=True)] == [True] * 5


def test_a_cell_beyond_all_bounds_is_refused_and_the_next_row_runs(tmp_path: Path) -> None:
    index = write(tmp_path / "t.csv", f"path,x\n{'a' * 200_000},1\nb.tif,2\n")
    assert ids(index) == ["b"]
    assert "line 2: invalid CSV: field larger than field limit" in refusals(index)[0]


@pytest.mark.parametrize("name", ["t.gpkg", "t.geojson", "t.parquet"])
def test_an_empty_path_of_a_layer_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    index = table(tmp_path / name, ["a.tif", None, "c.tif"])
    assert ids(index) == ["a", "c"]
    assert refusals(index) == [f"{index}, row 2: the row has no path; fill it in, or delete the row"]


@pytest.mark.parametrize("path", ["../b.tif", "sub/../../b.tif", "link/b.tif", "out.tif"])
def test_a_relative_path_that_leaves_the_folder_of_the_list_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    write(tmp_path / "b.tif", "")
    (folder / "link").symlink_to(tmp_path)
    (folder / "out.tif").symlink_to(tmp_path / "b.tif")
    index = write(folder / "list.txt", f"{path}\nsub/../c.tif\n")
    assert ids(index) == ["c"]
    assert f"{path}: leads out of {folder}, the folder of the list; write the absolute path" in refusals(index)[0]
    assert ids(index, root=str(tmp_path)) == (["b", "c"] if path != "out.tif" else ["out", "c"])
    assert ids(write(index, f"{tmp_path / 'b.tif'}\n")) == ["b"]


@pytest.mark.parametrize("path", ["/vsicurl/http://host/a.tif", "file:///etc/passwd", "/vsizip//data/a.zip/b.tif"])
def test_virtual_paths_and_other_schemes_are_refused_in_rows_too(tmp_path: Path, path: str) -> None:
    (text,) = refusals(write(tmp_path / "list.txt", path))
    assert "accepted" in text
    assert "line 1: " in text


@pytest.mark.parametrize("path", ["~/a.tif", "NETCDF:/etc/a.tif", "$HOME/a.tif"])
def test_what_a_shell_or_gdal_would_expand_is_an_ordinary_relative_path(tmp_path: Path, path: str) -> None:
    (entry,) = read(write(tmp_path / "list.txt", path))
    assert entry.location == f"{tmp_path}/{path}" or entry.refused is not None


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "..", "a b", "run.json", "x" * 201, "\x1b[2J", "p.gpkg"])
def test_an_id_that_is_no_safe_folder_is_refused(tmp_path: Path, name: str) -> None:
    index = write(tmp_path / "t.csv", f'path,id\na.tif,"{name}"\nb.tif,fine-1.0\n')
    entries = read(index)
    assert [entry.refused is None for entry in entries] == [False, True]
    assert str(entries[0].refused).startswith(f"the id {name!r} cannot name a folder")
    assert entries[0].id == f"{index}, line 2"


def test_the_second_of_two_equal_ids_is_refused(tmp_path: Path) -> None:
    index = write(tmp_path / "list.txt", "north/a.tif\nsouth/A.tif\nb.tif\n")
    assert len({entry.id for entry in read(index)}) == 3
    assert ids(index) == ["a", "b"]
    assert "line 2: the id 'A' is taken by another scene; give each its own in a column called id" in refusals(index)[0]


def test_an_interrupted_table_ends_with_a_refusal(tmp_path: Path) -> None:
    index = tmp_path / "t.parquet"
    rows = pyarrow.table({"path": [f"scene{k}.tif" for k in range(4000)]})
    pyarrow.parquet.write_table(rows, index, row_group_size=2000, compression="none", use_dictionary=False)
    data = bytearray(index.read_bytes())
    middle = data.index(b"scene2000.tif") - 60
    data[middle : middle + 50] = b"\xff" * 50
    index.write_bytes(data)
    assert 0 < len(ids(index)) < 4000
    assert "cannot be read to its end" in refusals(index)[-1]


# Selections


def test_a_limit_takes_the_first_scenes(tmp_path: Path) -> None:
    assert ids(write(tmp_path / "list.txt", "a.tif\nb.tif\nc.tif\n"), limit=2) == ["a", "b"]


@pytest.mark.parametrize("name", ["t.gpkg", "t.geojson", "t.parquet"])
def test_a_box_takes_the_scenes_whose_footprints_it_touches_without_opening_them(tmp_path: Path, name: str) -> None:
    index = table(tmp_path / name, ["a.tif", "b.tif", "c.tif"])
    assert ids(index, bbox=(10.5, 0.5, 25, 2)) == ["b", "c"]
    assert ids(index, bbox=(11, -5, 12, 5)) == ["b"]
    assert ids(index, bbox=(11.1, -5, 12, 5)) == []


@pytest.mark.parametrize("name", ["t.gpkg", "t.parquet"])
def test_footprints_of_another_crs_are_taken_to_degrees(tmp_path: Path, name: str) -> None:
    index = table(tmp_path / name, ["a.tif", "b.tif"], crs="EPSG:3857", step=1_113_195)  # ten degrees
    assert ids(index, bbox=(9, -1, 11, 1)) == ["b"]


def test_scenes_without_a_footprint_are_placed_by_their_own_grid(make_scene: MakeScene) -> None:
    west = make_scene(name="west.tif", transform=Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000))
    east = make_scene(name="east.tif", transform=Affine(0.5, 0, 600_000, 0, -0.5, 5_400_000))
    index = write(west.parent / "list.txt", "east.tif\ngone.tif\n")
    box = (15.5, 48, 17, 49)
    assert ids(west, index, bbox=box) == ["east"]
    assert ids(west, east, bbox=box) == ["east"]
    assert "no such file" in refusals(west, index, bbox=box)[0]


@pytest.mark.parametrize("name", TABLES)
def test_dates_take_scenes_between_them_both_counting(tmp_path: Path, name: str) -> None:
    days = ["2026-04-30T23:59:59Z", "2026-05-01", "2026-05-01T23:30:00-02:00", "2026-05-02 23:59:59"]
    index = table(tmp_path / name, ["a.tif", "b.tif", "c.tif", "d.tif"], datetime=days)
    assert ids(index, since="2026-05-01") == ["b", "c", "d"]
    assert ids(index, until="2026-05-01") == ["a", "b"]
    assert ids(index, since="2026-05-01T00:00:01Z", until="2026-05-02T01:30:00Z") == ["c"]


def test_since_may_count_back_from_the_run(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    days = [(now - timedelta(hours=hours)).isoformat() for hours in (1, 47, 49)]
    index = table(tmp_path / "t.csv", ["a.tif", "b.tif", "c.tif"], datetime=days)
    assert ids(index, since="2d") == ids(index, since="48h") == ["a", "b"]


def test_a_scene_without_a_date_uses_its_tag_and_is_refused_without_one(make_scene: MakeScene) -> None:
    scene, plain = make_scene(name="dated.tif"), make_scene(name="plain.tif")
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2026:05:01 10:00:00")
    index = write(scene.parent / "t.csv", "path,date\nplain.tif,last week\n")
    assert ids(scene, index, since="2026-05-01") == ["dated"]
    assert ids(scene, since="2026-05-02") == []
    (message,) = refusals(scene, index, since="2026-05-02")
    assert message.startswith(f"plain: {plain}: its acquisition date is unknown, which catalog.since")


def test_a_turned_scene_is_placed_by_its_corners_not_by_their_bounds(make_scene: MakeScene) -> None:
    turned = Affine.translation(0, 0) @ Affine.rotation(45) @ Affine.scale(1, -1)
    scene = make_scene(name="a.tif", crs="EPSG:4326", height=10, width=10, transform=turned)
    assert ids(scene, bbox=(5, -1, 9, 1)) == ["a"]
    assert ids(scene, bbox=(0.5, 5, 2, 7)) == []


@pytest.mark.parametrize(
    ("bbox", "inside"),
    [
        ((179, -17, -179, -16), True),
        ((179.9, -17, 180, -16), True),
        ((-180, -17, -179.95, -16), True),
        ((-10, -17, 10, -16), False),
        ((-179, -17, 179, -16), False),
    ],
)
def test_the_antimeridian_divides_neither_box_nor_scene(
    make_scene: MakeScene, bbox: tuple[float, float, float, float], inside: bool
) -> None:
    fiji = Affine(1000, 0, 810_000, 0, -1000, 8_180_000)  # UTM zone 60 south, 179.9 to 180.2 degrees east
    scene = make_scene(name="fiji.tif", crs="EPSG:32760", height=30, width=30, transform=fiji)
    assert ids(scene, bbox=bbox) == (["fiji"] if inside else [])


def test_a_scene_round_the_pole_covers_the_pole(make_scene: MakeScene) -> None:
    scene = make_scene(
        name="pole.tif", crs="EPSG:3413", height=10, width=10, transform=Affine(1e5, 0, -5e5, 0, -1e5, 5e5)
    )
    assert ids(scene, bbox=(100, 89, 101, 90)) == ["pole"]
    assert ids(scene, bbox=(100, 60, 101, 70)) == []


@pytest.mark.parametrize(
    "spec",
    [
        {"limit": 0},
        {"since": "June"},
        {"since": "7"},
        {"until": "20260501"},
        {"since": "2026-05-02", "until": "2026-05-01"},
        {"cloud_cover": 101},
        {"assets": ("red", "red")},
        {"bbox": (0, 10, 1, 5)},
        {"bbox": (0, 0, 200, 1)},
        {"bbox": (0, -91, 1, 1)},
        {"bbox": (float("nan"), 0, 1, 1)},
    ],
)
def test_impossible_selections_are_refused(spec: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="must"):
        CatalogSpec(**spec)  # type: ignore[arg-type]
