"""Synthetic towns: seeded, valid, georeferenced, and consistent with their own labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rio_cogeo import cog_validate

from pipeline.errors import SettingsError
from pipeline.training.synthetic import BANDS, COVERS, Town, build_town, write_town


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(3, 512, 640)


def test_the_same_seed_and_size_give_the_same_bytes(town: Town):
    again = build_town(3, 512, 640)
    assert np.array_equal(town.pixels, again.pixels)
    assert town.grid == again.grid
    assert shapely.equals_exact(town.buildings, again.buildings).all()


def test_another_seed_is_another_town(town: Town):
    assert not np.array_equal(town.pixels, build_town(4, 512, 640).pixels)


def test_pixels_have_the_size_and_type_that_was_asked_for(town: Town):
    assert town.pixels.shape == (len(BANDS), 512, 640)
    assert town.pixels.dtype == np.uint16
    assert town.grid.shape == (512, 640)
    assert town.grid.resolution_m == pytest.approx(0.5, rel=2e-3)


def test_nodata_is_a_border_in_all_bands_or_none(town: Town):
    invalid = town.pixels == 0
    assert np.array_equal(invalid.all(axis=0), invalid.any(axis=0))
    assert 0.02 < invalid[0].mean() < 0.35
    assert not invalid[0, 128:-128, 128:-128].any()
    assert not np.array_equal(invalid[0].all(axis=1), invalid[0].any(axis=1)), "the border is slanted"


def test_buildings_are_valid_apart_and_inside_the_valid_area(town: Town):
    assert len(town.buildings) > 30
    assert shapely.is_valid(town.buildings).all()
    assert shapely.area(shapely.union_all(town.buildings)) == pytest.approx(shapely.area(town.buildings).sum())
    inside = (town.pixels[0] > 0)[town.mask() == 1]
    assert inside.all()


@pytest.mark.parametrize("seed", range(3))
def test_buildings_keep_three_pixels_apart(seed: int):
    buildings = np.array(build_town(seed, 768, 768).buildings)
    pairs = shapely.STRtree(buildings).query(buildings, predicate="dwithin", distance=1.5)
    assert (pairs[0] == pairs[1]).all(), "so that a perfect mask gives one polygon per building"


def test_the_mask_is_the_truth_at_pixel_centres(town: Town):
    area = shapely.area(town.buildings).sum()
    assert town.mask().sum() * 0.25 == pytest.approx(area, rel=0.01)


def test_roofs_are_no_brightness_threshold_away(town: Town):
    valid, roof = town.pixels[0] > 0, town.mask() == 1
    for band in town.pixels.astype(np.float32):
        values = band[valid]
        thresholds = np.quantile(values, np.linspace(0.02, 0.98, 49))
        overlaps = [_iou(roof[valid], values >= threshold) for threshold in thresholds]
        assert max(overlaps) < 0.5


def _iou(truth: np.ndarray, found: np.ndarray) -> float:
    return float((truth & found).sum() / (truth | found).sum())


def test_the_file_is_a_valid_cog_with_named_bands(tmp_path: Path):
    path = tmp_path / "town.tif"
    town = write_town(path, seed=1, height=600, width=530)
    valid, errors, warnings = cog_validate(path)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as dataset:
        assert dataset.descriptions == BANDS
        assert dataset.nodata == 0
        assert dataset.crs == town.grid.crs
        assert dataset.transform == town.grid.transform
        assert dataset.compression.name == "zstd"
        assert dataset.block_shapes == [(512, 512)] * 4
        assert np.array_equal(dataset.read(), town.pixels)
    assert [each.name for each in tmp_path.iterdir()] == ["town.tif"]


def test_writing_twice_gives_the_same_file(town: Town, tmp_path: Path):
    town.write(tmp_path / "a.tif")
    town.write(tmp_path / "b.tif")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_gis_tools_read_the_truth_in_the_scenes_crs(town: Town, tmp_path: Path):
    path = tmp_path / "truth.geojson"
    town.write_truth(path)
    info = pyogrio.read_info(path)
    assert info["crs"] == "EPSG:32633"
    assert info["features"] == len(town.buildings)
    first = shapely.geometry.shape(json.loads(path.read_text())["features"][0]["geometry"])
    assert first.equals_exact(town.buildings[0])


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (256, 256),  # the least
        (257, 300),  # one row into a second strip
        (256, 900),  # wide
    ],
)
def test_any_size_from_256_has_buildings(height: int, width: int):
    town = build_town(11, height, width)
    assert town.pixels.shape == (4, height, width)
    assert town.mask().mean() > 0.02


def test_too_small_a_town_is_refused_with_the_bound():
    with pytest.raises(SettingsError, match="at least 256 x 256 px, not 255 x 400"):
        build_town(0, 255, 400)


def test_a_negative_seed_is_refused():
    with pytest.raises(SettingsError, match="seed must be >= 0, not -1"):
        build_town(-1)


def test_the_cover_agrees_with_the_buildings_except_below_trees(town: Town):
    building, tree = COVERS.index("building"), COVERS.index("tree")
    inside = town.mask() == 1
    assert set(np.unique(town.cover[inside])) <= {building, tree}
    hardly = (town.cover == building) & ~inside
    assert hardly.sum() < 0.01 * inside.sum(), "roof faces are burnt one by one, so a border pixel may differ"


def test_the_cover_has_every_kind_and_is_nodata_where_the_pixels_are(town: Town):
    assert np.array_equal(town.cover == 255, (town.pixels == 0).all(axis=0))
    shares = np.bincount(town.cover[town.cover < 255], minlength=len(COVERS)) / (town.cover < 255).sum()
    assert (shares > 0).all()
    assert 0.001 < shares[COVERS.index("car")] < 0.01


def test_the_written_cover_reads_back_on_the_scene_grid(town: Town, tmp_path: Path):
    town.write_cover(tmp_path / "cover.tif")
    with rasterio.open(tmp_path / "cover.tif") as dataset:
        assert (dataset.crs, dataset.transform) == (town.grid.crs, town.grid.transform)
        assert dataset.nodata == 255
        assert np.array_equal(dataset.read(1), town.cover)
