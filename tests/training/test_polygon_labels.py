"""Polygon labels are rasterized from any CRS and format, or refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from support.labelled import (
    ORIGIN,
    SMALL,
    Town,
    grid_of,
    place,
    polygon_labels,
    rectangles,
)

from pipeline.errors import LabelError
from pipeline.scene.describe import describe_scene
from pipeline.training.data.samples import open_data
from pipeline.training.labels.class_map import UNLABELLED_CLASS
from pipeline.training.labels.labelled_area import ClippedLabels, LabelledArea
from pipeline.training.labels.pairing import pair_labels
from pipeline.training.labels.polygon_labels import PolygonLabels, find_labels, open_polygon_labels, read_polygons
from pipeline.training.settings.data import SplitSpec


def test_polygons_of_another_crs_are_burnt_by_the_pixel_centre_rule(town: Town) -> None:
    labels = polygon_labels(town)
    assert np.array_equal(labels.burn(Window(0, 0, 96, 96))[0], town.mask)


@given(row=st.integers(0, 95), col=st.integers(0, 95), height=st.integers(1, 96), width=st.integers(1, 96))
def test_a_window_of_the_target_is_the_target_of_the_window(row: int, col: int, height: int, width: int) -> None:
    grid = grid_of(96)
    shapes = [shapely.affinity.rotate(s, 30) for s in rectangles(18)]
    labels = PolygonLabels(np.array(place(shapes).array, object), np.arange(18) % 2, grid, classes=2)
    whole = labels.burn(grid.window)
    window = Window(col, row, min(width, 96 - col), min(height, 96 - row))
    rows, cols = window.toslices()
    assert np.array_equal(labels.burn(window), whole[:, rows, cols])


def test_invalid_polygons_are_repaired_and_counted_and_lines_dropped(town: Town) -> None:
    bow = shapely.Polygon([(10, 10), (20, 20), (20, 10), (10, 20)])
    shapes = [bow, shapely.LineString([(0, 0), (9, 9)]), shapely.box(30, 30, 40, 40), shapely.Polygon()]
    geopandas.GeoDataFrame(geometry=place(shapes)).to_file(town.labels)
    table = read_polygons(town.labels, ("roof",))
    assert (table.repaired, table.dropped, len(table.frame)) == (1, 2, 2)
    target = open_polygon_labels([table], describe_scene(town.image), classes=1).burn(Window(0, 0, 96, 96))
    assert target.sum() == 100 + 50  # the square and the two triangles of the bow tie, each 10 x 5 / 2


def test_classes_come_from_an_attribute(town: Town) -> None:
    town.frame["kind"] = np.where(np.arange(len(town.frame)) % 2, "roof", "pool")
    town.frame.to_file(town.labels)
    target = polygon_labels(town, ("pool", "roof"), "kind").burn(Window(0, 0, 96, 96))
    assert np.array_equal(target.sum(axis=0), town.mask)
    assert target[0].sum() == target[1].sum() == town.mask.sum() // 2


def test_unusable_labels_are_refused_with_the_reason(town: Town, tmp_path: Path) -> None:
    scene = describe_scene(town.image)
    far = town.frame.translate(100_000)
    geopandas.GeoDataFrame(geometry=far).to_file(tmp_path / "far.gpkg")
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        geopandas.GeoDataFrame(geometry=far.set_crs(None, allow_override=True)).to_file(tmp_path / "lost.gpkg")
    (tmp_path / "text.gpkg").write_text("no polygons")
    with pytest.raises(LabelError, match=r"no polygon .* touches the scene .*town\.tif, which covers 15\.00"):
        open_polygon_labels([read_polygons(tmp_path / "far.gpkg", ("roof",))], scene, classes=1)
    with pytest.raises(LabelError, match=r"lost\.gpkg: has no CRS.*ogr2ogr"):
        read_polygons(tmp_path / "lost.gpkg", ("roof",))
    with pytest.raises(LabelError, match=r"text\.gpkg: does not begin like a \.gpkg file"):
        read_polygons(tmp_path / "text.gpkg", ("roof",))
    with pytest.raises(LabelError, match="has no attribute 'class'; it has kind, geometry"):
        read_polygons(town.labels, ("roof",), "class")
    with pytest.raises(
        LabelError, match=r'kind has the value\(s\) roof, .*known are pool = pool;.*class_map=\{"roof": none\}'
    ):
        read_polygons(town.labels, ("pool",), "kind")
    with pytest.raises(LabelError, match="with 2 classes, class_field must name"):
        read_polygons(town.labels, ("pool", "roof"))
    with pytest.raises(LabelError, match=r"class_map gives .* but class_field names no attribute.*has kind, geometry"):
        read_polygons(town.labels, ("roof",), None, {"roof": "roof"})
    geopandas.GeoDataFrame(geometry=town.frame.centroid).to_file(tmp_path / "points.gpkg")
    with pytest.raises(LabelError, match=r"points\.gpkg: holds no polygon: none of its 18 features has an area"):
        read_polygons(tmp_path / "points.gpkg", ("roof",))


def test_polygons_beyond_the_scene_crs_do_no_harm(tmp_path: Path, make_scene: MakeScene) -> None:
    image = make_scene(crs="EPSG:3857", transform=Affine(2, 0, 0, 0, -2, 0))
    degree = 1 / 111_319.49
    shapes = [shapely.box(20 * degree, -40 * degree, 40 * degree, -20 * degree), shapely.box(0, 80, 1, 90)]
    shapes += [shapely.box(-180, -90, 180, -89)]
    geopandas.GeoDataFrame(geometry=shapes, crs=4326).to_file(tmp_path / "world.gpkg")
    labels = open_polygon_labels([read_polygons(tmp_path / "world.gpkg", ("any",))], describe_scene(image), classes=1)
    target = labels.burn(Window(0, 0, 50, 40))[0]
    assert target[10:20, 10:20].all()
    assert target.sum() == 100


def test_labels_are_found_by_stem_or_serve_all_scenes(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        return tmp_path / name

    named = folder("named", "a.gpkg", "b.tif", "readme.txt")
    assert find_labels(named, ["a", "b"]) == {"a": (named / "a.gpkg",), "b": (named / "b.tif",)}
    assert find_labels(named / "a.gpkg", ["x", "y"]) == dict.fromkeys("xy", (named / "a.gpkg",))
    towns = folder("towns", "north.geojson", "south.geojson")
    assert find_labels(towns, ["a"]) == {"a": (towns / "north.geojson", towns / "south.geojson")}
    with pytest.raises(LabelError, match="the scene 'c' needs one label file of its name, but there is none"):
        find_labels(named, ["a", "c"])
    with pytest.raises(LabelError, match=r"there is \S*a\.gpkg, \S*a\.tif"):
        find_labels(folder("twice", "a.gpkg", "a.tif"), ["a"])
    with pytest.raises(LabelError, match=r"no label file is named like a scene \(a\)"):
        find_labels(folder("other", "b.tif"), ["a"])
    with pytest.raises(LabelError, match="no such label file or folder"):
        find_labels(tmp_path / "none", ["a"])


def test_real_labels_burn_to_the_published_masks(shared_data: Path) -> None:
    folder = shared_data / "buildings"
    scene = describe_scene(folder / "images" / "kampala_2.tif")
    table = read_polygons(folder / "labels" / "kampala.geojson", ("building",))
    assert table.repaired == 1
    target = open_polygon_labels([table], scene, classes=1).burn(Window(200, 300, 400, 500))
    with rasterio.open(folder / "masks" / "kampala_2.tif") as mask:
        expected = mask.read(1, window=Window(200, 300, 400, 500))
    assert (target[0] != expected).mean() < 1e-3


def test_attribute_values_mean_a_class_none_or_unlabelled(town: Town) -> None:
    shapes = [shapely.box(c, 0, c + 10, 10) for c in (0, 20, 40, 60)] + [shapely.box(20, 5, 35, 10)]
    kinds = ["house", "roof", "shed", "ruin", "ruin"]
    geopandas.GeoDataFrame({"kind": kinds}, geometry=place(shapes)).to_file(town.labels)
    meaning = {"house": "roof", "shed": "none", "ruin": "unlabelled"}
    table = read_polygons(town.labels, ("roof",), "kind", meaning)
    assert table.frame["class_index"].tolist() == [0, 0, UNLABELLED_CLASS, UNLABELLED_CLASS]
    target = open_polygon_labels([table], describe_scene(town.image), classes=1).burn(Window(0, 0, 96, 10))[0]
    assert (target[:, :10] == 1).all()
    assert (target[:5, 20:30] == 1).all()
    assert (target[5:, 20:35] == 255).all()
    assert not target[:, 40:50].any()
    assert (target[:, 60:70] == 255).all()


def test_an_unlabelled_polygon_overrides_the_others_of_every_class() -> None:
    grid = grid_of(96)
    shapes = [shapely.box(10, 10, 30, 30), shapely.box(20, 10, 40, 30), shapely.box(25, 10, 35, 30)]
    index = np.array([0, 1, UNLABELLED_CLASS])
    target = PolygonLabels(np.array(place(shapes).array, object), index, grid, classes=2).burn(Window(0, 15, 50, 1))
    row = np.zeros((2, 1, 50), np.uint8)
    row[0, :, 10:30] = row[1, :, 20:40] = 1
    row[:, :, 25:35] = 255
    assert np.array_equal(target, row)


def test_numbers_and_gaps_in_an_attribute_are_mapped_by_their_text(town: Town) -> None:
    town.frame["kind"] = np.where(np.arange(len(town.frame)) % 2, 3.0, np.nan)
    town.frame.to_file(town.labels)
    table = read_polygons(town.labels, ("roof",), "kind", {"3": "roof", "null": "none"})
    assert len(table.frame) == len(town.frame) // 2
    assert table.dropped == 0


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet", ".fgb", ".shp"])
def test_polygons_are_read_from_every_format(town: Town, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels{suffix}"
    frame = town.frame.to_crs(4326)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    labels = open_polygon_labels([read_polygons(path, ("roof",))], describe_scene(town.image), classes=1)
    assert np.array_equal(labels.burn(Window(0, 0, 96, 96))[0], town.mask)


def test_the_one_layer_with_geometries_is_read_and_two_are_refused(town: Town) -> None:
    styles = pandas.DataFrame({"styleName": ["plain"]})
    pyogrio.write_dataframe(styles, town.labels, layer="layer_styles", append=True)
    assert len(read_polygons(town.labels, ("roof",)).frame) == len(town.frame)
    town.frame.to_file(town.labels, layer="second")
    with pytest.raises(LabelError, match="has the layers town, second; keep the one"):
        read_polygons(town.labels, ("roof",))


def test_nothing_counts_outside_the_labelled_area(town: Town, tmp_path: Path) -> None:
    looked = [shapely.box(10, 20, 50, 60), shapely.box(40, 50, 90, 90).difference(shapely.box(60, 60, 70, 70))]
    geopandas.GeoDataFrame(geometry=place(looked)).to_crs(4326).to_file(tmp_path / "area.geojson")
    scene = describe_scene(town.image)
    area = LabelledArea(tmp_path / "area.geojson").polygons_touching(scene)
    inside = np.zeros((96, 96), bool)
    inside[20:60, 10:50] = inside[50:90, 40:90] = True
    inside[60:70, 60:70] = False
    for window in (Window(0, 0, 96, 96), Window(45, 33, 30, 40), Window(0, 0, 9, 9)):
        target = ClippedLabels(polygon_labels(town), area, scene.grid).burn(window)[0]
        expected = np.where(inside, town.mask, 255)[window.toslices()]
        assert np.array_equal(target, expected)


def test_a_labelled_area_allows_empty_scenes_and_excludes_scenes_outside(
    town: Town, tmp_path: Path, make_scene: MakeScene, caplog: pytest.LogCaptureFixture
) -> None:
    bare, far = (
        make_scene(town.pixels, name=f"{name}.tif", transform=Affine.translation(east, 0) @ ORIGIN)
        for name, east in (("bare", 100), ("far", 9000))
    )
    area = tmp_path / "area.gpkg"
    geopandas.GeoDataFrame(geometry=place([shapely.box(10, 20, 300, 60)])).to_file(area)
    with pytest.raises(
        LabelError, match=r"touches the scene .*bare\.tif.* or give the labelled land with labelled_area"
    ):
        open_data([town.image, bare], town.labels, SMALL)
    spec = replace(SMALL, labelled_area=str(area))
    data = open_data([town.image, bare, far], town.labels, spec)
    assert [source.scene.id for source in data.sources] == ["town", "bare"]
    assert "left out, because labelled_area does not touch them: far" in caplog.text
    target = data.sources[1].target(Window(0, 0, 96, 96))
    assert np.unique(target).tolist() == [0, 255]
    with pytest.raises(LabelError, match=r"labelled_area: .*area\.gpkg does not touch far"):
        open_data([far], town.labels, spec)
    with pytest.raises(LabelError, match="does not touch far"):
        open_data([town.image, far], town.labels, replace(spec, split=SplitSpec(validation=("far",))))
    with pytest.raises(LabelError, match=r"labelled_area: gone\.gpkg: no such file"):
        LabelledArea("gone.gpkg")


def test_an_empty_label_file_means_no_objects(town: Town) -> None:
    empty = town.labels.with_suffix(".geojson")
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    labels = open_polygon_labels([read_polygons(empty, ("roof",))], describe_scene(town.image), classes=1)
    assert not labels.burn(Window(0, 0, 96, 96)).any()


def test_images_and_masks_pair_by_stem_with_or_without_a_suffix_inside() -> None:
    masks = [Path(name) for name in ("m/Amazon_5.tiff_50.png", "m/Amazon_51.png", "m/b.tif.png", "m/c.2024.tif")]
    assert pair_labels(masks, "i/Amazon_5.tiff_50.tiff") == (masks[0],)
    assert pair_labels(masks, "i/Amazon_5_50.tiff") == (masks[0],)
    assert pair_labels(masks, "i/Amazon_5.tif") == ()
    assert pair_labels(masks, "i/b.tif") == (masks[2],)
    assert pair_labels(masks, "i/c.2024.jpg") == (masks[3],)
    twins = [Path("data/train/masks/1.png"), Path("data/val/masks/1.png"), Path("data/val/images/1.tif")]
    assert pair_labels(twins, "data/val/images/1.tif") == (twins[1],)


def test_every_image_of_several_folders_finds_its_label_in_several_folders(tmp_path: Path) -> None:
    for name in ("train/i/1.tif", "train/m/1.png", "val/i/1.tif", "val/m/1.png", "val/i/2.tif", "val/m/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images = [str(tmp_path / name) for name in ("train/i/1.tif", "val/i/1.tif", "val/i/2.tif")]
    found = find_labels([tmp_path / "train" / "m", tmp_path / "val" / "m"], images)
    assert [found[image][0].relative_to(tmp_path).as_posix() for image in images] == [
        "train/m/1.png", "val/m/1.png", "val/m/2.png"
    ]  # fmt: skip
    with pytest.raises(LabelError, match=r"'1' needs one .* there is none"):
        find_labels([tmp_path / "val" / "m" / "2.png", tmp_path / "val" / "i" / "2.tif"], images)
