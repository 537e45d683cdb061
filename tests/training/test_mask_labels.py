"""Mask labels align with their scene on any grid, and every value has a meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.windows import Window
from support.labelled import ORIGIN, UTM, Town, grid_of

from pipeline.errors import LabelError
from pipeline.grid.raster_grid import RasterGrid
from pipeline.scene.describe import describe_scene
from pipeline.scene.spec import ReadingSpec
from pipeline.training.labels import mask_labels as masks
from pipeline.training.labels.class_map import mask_meanings
from pipeline.training.labels.mask_labels import MaskLabels, MaskPixelLookup, open_mask_labels

ALL = Window(0, 0, 96, 96)


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


def test_a_class_map_defines_each_value(town: Town, make_scene: MakeScene) -> None:
    values = np.random.default_rng(0).choice([0, 7, 9, 255], (96, 96))
    meanings = mask_meanings(["roof", "pool"], {"255": "pool", "0": "none", "7": "unlabelled", "9": "roof"})
    scene = describe_scene(town.image)
    for dtype in ("uint8", "int16", "int32", "float32"):
        path = make_scene(values.astype(dtype), transform=ORIGIN)
        labels = open_mask_labels(path, scene, scene.grid, classes=["roof", "pool"], meanings=meanings)
        target = labels.burn(ALL)
        assert np.array_equal(target == 1, np.stack([values == 9, values == 255]))
        assert np.array_equal(target == 255, np.stack([values == 7] * 2))


def test_nodata_and_masked_pixels_are_unlabelled_and_zero_never_silently(town: Town, make_scene: MakeScene) -> None:
    values = np.where(np.arange(96 * 96).reshape(96, 96) % 3, town.mask, 9).astype(np.uint8)
    target = mask_labels(make_scene(values, transform=ORIGIN, nodata=9), town).burn(ALL)[0]
    assert np.array_equal(target, np.where(values == 9, 255, values))
    seen = np.arange(96 * 96).reshape(96, 96) % 5 > 0
    target = mask_labels(make_scene(town.mask, transform=ORIGIN, mask=seen), town).burn(ALL)[0]
    assert np.array_equal(target, np.where(seen, town.mask, 255))
    scene = describe_scene(town.image)
    path = make_scene(town.mask, transform=ORIGIN, nodata=0)
    labels = open_mask_labels(
        path, scene, scene.grid, classes=["roof"], meanings=mask_meanings(["roof"], {"1": "roof"})
    )
    with pytest.raises(
        LabelError, match=r"has the value\(s\) 0, which have no meaning; known are 255 = unlabelled, 1 ="
    ):
        labels.burn(ALL)


def test_a_value_without_a_meaning_is_named_with_the_known_ones(town: Town, make_scene: MakeScene) -> None:
    for dtype in ("uint8", "float32"):
        path = make_scene((town.mask * 7).astype(dtype), transform=ORIGIN)
        with pytest.raises(
            LabelError, match=r'\.tif: this mask has the value\(s\) 7.*0 = none, 1 = class 1.*\{"7": none\}'
        ):
            mask_labels(path, town).burn(ALL)


@given(
    scale=st.floats(0.3, 4),
    turn=st.sampled_from([0.0, 0.0, 30.0]),
    shift=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
    crs=st.sampled_from([UTM, "EPSG:32632", "EPSG:3857"]),
    row=st.integers(0, 90),
    col=st.integers(0, 90),
)
def test_each_scene_pixel_takes_the_mask_pixel_under_its_centre(
    scale: float, turn: float, shift: tuple[float, float], crs: str, row: int, col: int
) -> None:
    grid = grid_of(96)
    there = Transformer.from_crs(UTM, crs, always_xy=True)
    origin = there.transform(ORIGIN.c + shift[0], ORIGIN.f + shift[1])
    transform = Affine.translation(*origin) @ Affine.rotation(turn) @ Affine.scale(0.5 * scale, -0.5 * scale)
    mask = RasterGrid(crs=CRS.from_string(crs), transform=transform, height=50, width=70)
    window = Window(col, row, 6, 5)
    rows, cols = (np.broadcast_to(each, (5, 6)) for each in MaskPixelLookup(grid, mask).of(window))
    for down, along in ((0, 0), (4, 5), (2, 3)):
        x, y = there.transform(*(grid.transform @ (col + along + 0.5, row + down + 0.5)))
        place = ~mask.transform @ (x, y)
        assert (cols[down, along] + 0.5, rows[down, along] + 0.5) == pytest.approx(place, abs=0.5 + 1e-5)


def test_a_mask_of_another_grid_is_warped_and_unlabelled_where_it_ends(town: Town, make_scene: MakeScene) -> None:
    fine = np.kron(town.mask, np.ones((2, 2), np.uint8))[20:]
    half = ORIGIN @ Affine.translation(0, 10) @ Affine.scale(0.5)
    for window in (ALL, Window(3, 5, 40, 50), Window(0, 0, 9, 9)):
        target = mask_labels(make_scene(fine, transform=half), town).burn(window)[0]
        expected = town.mask.copy()
        expected[:10] = 255
        assert np.array_equal(target, expected[window.toslices()])


def test_a_fine_mask_is_read_in_bounded_parts(
    town: Town, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = make_scene(np.kron(town.mask, np.ones((3, 3), np.uint8)), transform=ORIGIN @ Affine.scale(1 / 3))
    monkeypatch.setattr(masks, "MAX_MASK_PIXELS", 500)
    assert np.array_equal(mask_labels(fine, town).burn(ALL)[0], town.mask)


def test_a_mask_without_georeferencing_lies_on_its_scene_pixel_by_pixel(town: Town, make_scene: MakeScene) -> None:
    bare = make_scene(town.mask, name="bare.png", driver="PNG", crs=None)
    bare.with_suffix(".png.aux.xml").unlink(missing_ok=True)
    assert np.array_equal(mask_labels(bare, town).burn(ALL)[0], town.mask)
    coarse = mask_labels(bare, town, spec=ReadingSpec(resolution_m=1.0))
    assert np.array_equal(coarse.burn(Window(3, 4, 40, 30))[0], town.mask[1::2, 1::2][4:34, 3:43])


def test_a_mask_that_does_not_lie_on_its_scene_is_refused(town: Town, make_scene: MakeScene) -> None:
    far = Affine.translation(500, 0) @ ORIGIN
    small = make_scene(town.mask[:90], name="small.png", driver="PNG", crs=None)
    small.with_suffix(".png.aux.xml").unlink(missing_ok=True)
    cases = [
        (
            small,
            r"must have the size of its scene .*, 96 rows x 96 columns, not 90 x 96, because it is not georef.*cut it",
        ),
        (
            make_scene(town.mask, transform=far),
            r"covers 15\.00.* so does not overlap its scene .*town\.tif, which covers 15",
        ),
        (make_scene(town.mask, transform=ORIGIN, crs="EPSG:32634"), r"covers 21\.00.* does not overlap"),
        (make_scene(np.stack([town.mask] * 3), transform=ORIGIN), "a mask has one band, not 3"),
        (town.image.with_name("gone.tif"), "the mask of the scene town cannot be used: .*no such file"),
    ]
    for path, message in cases:
        with pytest.raises(LabelError, match=message):
            mask_labels(path, town)
