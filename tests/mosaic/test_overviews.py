"""Overviews equal their definition, pixel by pixel, and GDAL's where the definitions agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling

from pipeline.mosaic.overviews import SLAB_ROWS, Halve, halve_mean, halve_mode, halve_slabs, overview_count

NODATA = {"uint8": 255.0, "uint16": 65535.0, "float32": float("nan")}


def quads(pixels: NDArray[np.generic], nodata: float) -> list[list[list[float]]]:
    """The valid values under each overview pixel, row by row; what lies past the scene is the border again."""
    height, width = pixels.shape
    found = []
    for row in range(0, height, 2):
        places = [[(min(row + r, height - 1), min(col + c, width - 1)) for r in (0, 1) for c in (0, 1)]
                  for col in range(0, width, 2)]  # fmt: skip
        values = [[float(pixels[place]) for place in quad] for quad in places]
        found.append([[v for v in quad if v == v and v != nodata] for quad in values])
    return found


def mean_of(values: list[float], dtype: str) -> float:
    if not values:
        return NODATA[dtype]
    if dtype == "float32":
        return float(np.float32(sum(values) / len(values)))
    return (2 * sum(values) + len(values)) // (2 * len(values))


def mode_of(values: list[float]) -> float:
    return Counter(values).most_common(1)[0][0] if values else 255.0


def scenes(dtype: str, values: int) -> st.SearchStrategy[NDArray[np.generic]]:
    """Small rasters of few values, some invalid; float32 sums of them are exact."""

    def build(shape: tuple[int, int], seed: int, invalid: float) -> NDArray[np.generic]:
        generator = np.random.default_rng(seed)
        pixels = generator.integers(0, values, shape).astype(dtype)
        pixels[generator.random(shape) < invalid] = NODATA[dtype]
        return pixels

    sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return st.builds(build, sides, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.9]))


@pytest.mark.parametrize("dtype", NODATA)
def test_a_mean_is_that_of_the_valid_pixels_rounded_half_up(dtype: str) -> None:
    @given(scenes(dtype, 255))
    def check(pixels: NDArray[np.generic]) -> None:
        expected = [[mean_of(quad, dtype) for quad in row] for row in quads(pixels, NODATA[dtype])]
        assert np.array_equal(halve_mean(pixels[None], NODATA[dtype])[0], expected, equal_nan=True)

    check()


@given(scenes("uint8", 4))
def test_a_mode_is_the_commonest_valid_value_and_the_first_among_equals(pixels: NDArray[np.generic]) -> None:
    expected = [[mode_of(quad) for quad in row] for row in quads(pixels, 255.0)]
    assert halve_mode(pixels[None], 255)[0].tolist() == expected


@pytest.mark.parametrize("halve", [halve_mean, halve_mode])
def test_slabs_change_nothing(halve: Halve) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5 * SLAB_ROWS + 5, 7), np.uint8)
    pixels[:, SLAB_ROWS : 2 * SLAB_ROWS] = 255
    pixels[:, 3 * SLAB_ROWS : 4 * SLAB_ROWS] = 7
    assert (halve_slabs(halve, pixels, 255) == halve(pixels, 255)).all()


def test_means_of_the_largest_levels_do_not_overflow() -> None:
    assert halve_mean(np.full((1, 2, 2), 65534, np.uint16), 65535).tolist() == [[[65534]]]
    assert halve_mean(np.array([[[65534, 65534], [65534, 65535]]], np.uint16), 65535).tolist() == [[[65534]]]


@pytest.mark.parametrize("shape", [(1, 1), (512, 512), (513, 1), (1024, 1025), (10_980, 10_980), (100_000, 7)])
def test_there_are_as_many_overviews_as_gdal_makes(shape: tuple[int, int]) -> None:
    count, longest = 0, max(shape)
    while longest > 512:
        count, longest = count + 1, -(-longest // 2)
    assert overview_count(shape, 512) == count


@pytest.mark.parametrize(("halve", "resampling"), [(halve_mean, Resampling.average), (halve_mode, Resampling.mode)])
@pytest.mark.parametrize("invalid", [0.0, 0.2])
def test_overviews_are_those_of_gdal_but_for_ties(
    tmp_path: Path, halve: Halve, resampling: Resampling, invalid: float
) -> None:
    """Half a level is rounded up here, and among equally common values the first one wins; GDAL leaves both open."""
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 255 if halve is halve_mean else 3, (1, 64, 96)).astype(np.uint8)
    pixels[generator.random(pixels.shape) < invalid] = 255
    place = rasterio.Affine(1, 0, 0, 0, -1, 64)
    profile = {"height": 64, "width": 96, "count": 1, "dtype": "uint8", "nodata": 255, "transform": place}
    with rasterio.open(tmp_path / "x.tif", "w", **profile) as dataset:
        dataset.write(pixels)
        dataset.build_overviews([2], resampling)
    with rasterio.open(tmp_path / "x.tif", overview_level=0) as dataset:
        theirs = dataset.read(1)
    ours = halve(pixels, 255)[0]
    clear = np.array([[_is_clear(quad, halve) for quad in row] for row in quads(pixels[0], 255.0)])
    assert clear.mean() > 0.3
    assert (ours == theirs)[clear].all()


def _is_clear(values: list[float], halve: Halve) -> bool:
    if halve is halve_mean:
        return not values or sum(values) / len(values) % 1 != 0.5
    ranks = Counter(values).most_common(2)
    return len(ranks) < 2 or ranks[0][1] > ranks[1][1]
