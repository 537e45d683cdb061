"""Scale and offset tags and the model's normalisation fold into one multiply-add per band."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS
from support.strips import raw_strip

from pipeline.grid.raster_grid import RasterGrid
from pipeline.inference.normalize import InputTransform, input_transform
from pipeline.inference.tile_input import TileCutter
from pipeline.inference.transfer import DirectTransfer
from pipeline.model.card import REAL_DTYPES, Normalization
from pipeline.scene.describe import Scene
from pipeline.scene.file import SceneFile
from pipeline.storage.location import resolve_location

CPU = torch.device("cpu")

numbers = st.floats(-100, 100).map(lambda value: round(value, 3))
gains = numbers.filter(lambda value: abs(value) > 0.01)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Two bands without tags; nothing of it is read from a file."""
    grid = RasterGrid(crs=CRS.from_epsg(32633), transform=Affine.identity(), height=8, width=8)
    file = SceneFile(
        location=resolve_location("drawn.tif"),
        driver="GTiff",
        grid=grid,
        block_shape=(8, 8),
        bands=("red", "nir"),
        band_numbers=(1, 2),
        dtype="uint8",
        scales=(1.0, 1.0),
        offsets=(0.0, 0.0),
        nodata=(None, None),
        alpha_number=None,
        mask="none",
        size_bytes=None,
        modified_ns=None,
    )
    return Scene(id="drawn", grid=grid, files=(file,), bands=("red", "nir"), dtype="uint8", nodata_when="all_bands")


@given(st.lists(gains, min_size=8, max_size=8), st.lists(numbers, min_size=2, max_size=2))
def test_tags_come_before_the_models_normalisation(scene: Scene, factors: list[float], pixel: list[float]) -> None:
    """`((pixel * scale + offset) * gain + bias)`, band by band."""
    scales, offsets, gain, bias = (np.array(factors[k : k + 2]) for k in range(0, 8, 2))
    tagged = replace(scene, files=(replace(scene.files[0], scales=tuple(scales), offsets=tuple(offsets)),))
    fold = input_transform(tagged, Normalization(gain=tuple(gain), bias=tuple(bias)))
    result = fold.apply(np.array(pixel)[:, None, None], np.ones((1, 1), bool))[:, 0, 0]
    expected = (np.array(pixel) * scales + offsets) * gain + bias
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-1)


def test_without_tags_and_normalisation_pixels_pass_as_they_are(scene: Scene) -> None:
    assert input_transform(scene, Normalization()) == InputTransform(gain=(1.0, 1.0), bias=(0.0, 0.0), clip=None)


def test_the_clip_comes_last(scene: Scene) -> None:
    fold = input_transform(scene, Normalization.value_range([0, 0], [100, 200]))
    pixels = np.array([-50, 50, 250], np.float32) * np.ones((2, 1, 1), np.float32)
    assert fold.apply(pixels, np.ones((1, 3), bool)).tolist() == [[[0, 0.5, 1]], [[0, 0.25, 1]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_invalid_pixels_become_zero_whatever_they_hold(bad: float) -> None:
    fold = InputTransform(gain=(2.0,), bias=(5.0,), clip=(1.0, 9.0))
    result = fold.apply(np.array([[[bad, 1.0]]], np.float32), np.array([[False, True]]))
    assert result.tolist() == [[[0.0, 7.0]]]
    assert result.dtype == np.float32


@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_tiles_are_normalised_like_in_training(dtype: str) -> None:
    """One definition of model input: the device's arithmetic equals `InputTransform.apply`."""
    rng = np.random.default_rng(0)
    pixels = (rng.random((2, 8, 12)) * 100).astype(dtype)
    valid = rng.random((8, 12)) > 0.3
    fold = InputTransform(gain=(0.25, 2.0), bias=(1.0, -3.0), clip=(-2.0, 100.0))
    strip = DirectTransfer(CPU).to_device(raw_strip(pixels, valid, cuts=(5,)))
    cutter = TileCutter(fold, device=CPU, dtype=torch.float32, layout=torch.contiguous_format)
    tile = cutter.cut(strip, [3], 8, size=1)[0]
    np.testing.assert_allclose(tile, fold.apply(pixels, valid)[:, :, 3:11], rtol=1e-6)
