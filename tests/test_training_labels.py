"""Labels reach the pixels they are of, from any CRS and format, or are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import SHARED_DATA, MakeScene
from hypothesis import given
from hypothesis import strategies as st
from labelled import (
    ORIGIN,
    Town,
    grid_of,
    place,
    polygon_labels,
    rectangles,
)
from rasterio.windows import Window

from pipeline.errors import LabelError
from pipeline.scene import ReadingSpec, describe_scene
from pipeline.training.labels import (
    PolygonLabels,
    find_labels,
    open_polygon_labels,
    read_polygons,
)
from pipeline.training.masks import MaskLabels, open_mask_labels


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
    part = labels.burn(window)
    assert np.array_equal(part, whole[:, rows, cols])
    assert labels.touches(window) or not part.any()


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


def test_labels_that_cannot_be_used_say_why(town: Town, tmp_path: Path) -> None:
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
    with pytest.raises(LabelError, match=r"text\.gpkg: cannot be read as vector data"):
        read_polygons(tmp_path / "text.gpkg", ("roof",))
    with pytest.raises(LabelError, match="has no attribute 'class'; it has kind, geometry"):
        read_polygons(town.labels, ("roof",), "class")
    with pytest.raises(LabelError, match=r"kind has the values \['roof'\], which are not among classes"):
        read_polygons(town.labels, ("pool",), "kind")
    with pytest.raises(LabelError, match="with 2 classes, class_field must name"):
        read_polygons(town.labels, ("pool", "roof"))


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
    with pytest.raises(LabelError, match=r"there is a\.gpkg, a\.tif"):
        find_labels(folder("twice", "a.gpkg", "a.tif"), ["a"])
    with pytest.raises(LabelError, match=r"no label file is named like a scene \(a\)"):
        find_labels(folder("other", "b.tif"), ["a"])
    with pytest.raises(LabelError, match="no such label file or folder"):
        find_labels(tmp_path / "none", ["a"])


def mask_labels(path: Path, town: Town, classes: int = 1, spec: ReadingSpec | None = None) -> MaskLabels:
    native = describe_scene(town.image).grid
    return open_mask_labels(path, describe_scene(town.image, spec), native, classes=classes)


def test_a_mask_raster_is_a_class_per_value(town: Town, make_scene: MakeScene) -> None:
    values = np.random.default_rng(0).choice([0, 1, 2, 255], (96, 96)).astype(np.uint8)
    target = mask_labels(make_scene(values, transform=ORIGIN), town, classes=2).burn(Window(5, 7, 30, 20))
    part = values[7:27, 5:35]
    assert np.array_equal(target[1] == 1, part == 2)
    assert np.array_equal(target == 255, np.stack([part == 255] * 2))


def test_zero_means_none_even_where_it_is_tagged_nodata(town: Town, make_scene: MakeScene) -> None:
    target = mask_labels(make_scene(town.mask, transform=ORIGIN, nodata=0), town).burn(Window(0, 0, 96, 96))
    assert np.array_equal(target[0], town.mask)


def test_a_resampled_scene_takes_the_mask_value_under_each_pixel_centre(town: Town) -> None:
    labels = mask_labels(town.mask_file, town, spec=ReadingSpec(resolution_m=1.0))
    assert labels.grid.shape == (48, 48)
    assert np.array_equal(labels.burn(Window(3, 4, 40, 30))[0], town.mask[1::2, 1::2][4:34, 3:43])


def test_a_mask_that_does_not_lie_on_its_scene_is_refused(town: Town, make_scene: MakeScene) -> None:
    moved = Affine.translation(0.5, 0) * ORIGIN
    cases = [
        (make_scene(town.mask[:90], transform=ORIGIN), "must have the size of its scene .*, 96 x 96 px, not 90 x 96"),
        (make_scene(town.mask, transform=ORIGIN, crs="EPSG:32634"), "its CRS EPSG:32634 is not that of its scene"),
        (make_scene(town.mask, transform=moved), "its transform .* is not that of its scene"),
        (make_scene(np.stack([town.mask] * 3), transform=ORIGIN), "a mask has one band, not 3"),
        (make_scene(town.mask * 7, transform=ORIGIN), r"1 to 1 \(the classes in order\).*this one has \[7\]"),
    ]
    for path, said in cases:
        with pytest.raises(LabelError, match=said):
            mask_labels(path, town).burn(Window(0, 0, 96, 90))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data set is not here")
def test_real_labels_burn_to_the_published_masks() -> None:
    folder = SHARED_DATA / "buildings"
    scene = describe_scene(folder / "images" / "kampala_2.tif")
    table = read_polygons(folder / "labels" / "kampala.geojson", ("building",))
    assert table.repaired == 1
    target = open_polygon_labels([table], scene, classes=1).burn(Window(200, 300, 400, 500))
    with rasterio.open(folder / "masks" / "kampala_2.tif") as mask:
        expected = mask.read(1, window=Window(200, 300, 400, 500))
    assert (target[0] != expected).mean() < 1e-3
