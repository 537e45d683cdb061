"""Strips of any height become one Cloud-Optimized GeoTIFF; blocks read back are levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window
from rio_cogeo import cog_validate

from pipeline.errors import SceneError, TransientError
from pipeline.grid.raster_grid import RasterGrid
from pipeline.model.card import ModelCard
from pipeline.mosaic.classify import classify
from pipeline.mosaic.levels import BLOCK, as_levels
from pipeline.mosaic.overviews import overview_count
from pipeline.mosaic.reader import MosaicReader
from pipeline.mosaic.strips import StripWriter, level_path
from pipeline.mosaic.writer import MosaicSpec, MosaicWriter, mask_profile, probability_profile, write_cog

CARD = ModelCard(bands=("red",), classes=("roof", "road"), training={"data": "x" * 100})


def grid(height: int, width: int) -> RasterGrid:
    transform = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    return RasterGrid(crs=CRS.from_epsg(32633), transform=transform, height=height, width=width)


def write(path: Path, pixels: np.ndarray, heights: list[int], spec: MosaicSpec) -> None:
    profile = probability_profile(grid(*pixels.shape[1:]), CARD, spec, {"SCENEMILL_SCENE": "here"})
    plain = path.with_suffix(".part.tif")
    with StripWriter(plain, profile, overviews=overview_count(profile.grid.shape, BLOCK)) as writer:
        row = 0
        for height in heights:
            writer.write(pixels[:, row : row + height])
            row += height
    write_cog([(plain, profile.grid.window)], path, profile)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 700), min_size=1, max_size=5))
def test_strips_of_any_height_are_stored_as_they_are(tmp_path: Path, heights: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, sum(heights), 37), np.uint8)
    write(tmp_path / "m.tif", pixels, heights, MosaicSpec())
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert (dataset.read() == pixels).all()


@pytest.mark.parametrize("compress", ["zstd", "deflate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_mosaic_is_a_cog_that_gis_tools_read_as_probabilities(tmp_path: Path, dtype: str, compress: str) -> None:
    spec = MosaicSpec(dtype=dtype, compress=compress)  # type: ignore[arg-type]
    top = {"uint8": 254, "uint16": 65534, "float32": 1.0}[dtype]
    pixels = np.full((2, 1200, 900), top, dtype)
    write(tmp_path / "m.tif", pixels, [500, 700], spec)
    valid, errors, warnings = cog_validate(tmp_path / "m.tif", strict=True, quiet=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert np.allclose(dataset.read(1) * dataset.scales[0] + dataset.offsets[0], 1.0)
        assert dataset.descriptions == ("roof", "road")
        assert dataset.tags()["SCENEMILL_SCENE"] == "here"
        assert dataset.overviews(1)
        assert dataset.block_shapes[0] == (512, 512)


def test_levels_come_back_as_stored_with_the_largest_for_invalid(tmp_path: Path) -> None:
    pixels = np.array([[[0, 254, 255]], [[127, 1, 255]]], np.uint8)
    write(tmp_path / "m.tif", pixels, [1], MosaicSpec())
    with MosaicReader(tmp_path / "m.tif") as reader:
        assert reader.levels == 254
        assert reader.card.classes == CARD.classes
        levels = reader.read_levels(Window(0, 0, 3, 1))
        assert levels.dtype == np.uint8
        assert levels.tolist() == pixels.tolist()


@pytest.mark.parametrize(
    ("dtype", "top", "level"), [("uint8", 254, 254), ("uint16", 65534, 65534), ("float32", 1, 65534)]
)
def test_a_mosaic_of_each_type_says_what_its_top_level_is(tmp_path: Path, dtype: Any, top: int, level: int) -> None:
    write(tmp_path / "m.tif", np.full((2, 1, 3), top, dtype), [1], MosaicSpec(dtype=dtype))
    with MosaicReader(tmp_path / "m.tif") as reader:
        assert reader.levels == level
        assert (reader.read_levels(Window(0, 0, 3, 1)) == level).all()


def test_the_card_in_a_mosaic_leaves_the_training_facts_to_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "m.tif", np.zeros((2, 1, 1), np.uint8), [1], MosaicSpec())
    with MosaicReader(tmp_path / "m.tif") as reader:
        assert reader.card.training == {}


def test_a_raster_of_others_is_no_mosaic(tmp_path: Path) -> None:
    with StripWriter(tmp_path / "x.tif", mask_profile(grid(4, 4), CARD, MosaicSpec(), {})) as writer:
        writer.write(np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(SceneError, match="no probability mosaic"):
        MosaicReader(tmp_path / "x.tif")


def test_a_mask_has_a_colour_and_a_name_for_every_class(tmp_path: Path) -> None:
    with StripWriter(tmp_path / "x.tif", mask_profile(grid(1, 4), CARD, MosaicSpec(), {})) as writer:
        writer.write(np.array([[[0, 1, 2, 255]]], np.uint8))
    with rasterio.open(tmp_path / "x.tif") as dataset:
        colours = dataset.colormap(1)
        assert dataset.nodata == 255
        assert (dataset.tags()["CLASS_1"], dataset.tags()["CLASS_2"]) == ("roof", "road")
    assert len({colours[value] for value in (0, 1, 2, 255)}) == 4


def mosaic_writer(folder: Path, spec: MosaicSpec, shape: tuple[int, int]) -> MosaicWriter:
    return MosaicWriter(
        (folder / "p.tif", probability_profile(grid(*shape), CARD, spec, {})),
        (folder / "m.tif", mask_profile(grid(*shape), CARD, spec, {})),
        card=CARD,
        threshold=0.3,
        overviews=1,
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_mask_is_decided_from_what_is_stored(tmp_path: Path, dtype: str) -> None:
    spec = MosaicSpec(dtype=dtype)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    stored = generator.random((2, 700, 60), np.float32)
    if dtype != "float32":
        stored = generator.integers(0, np.iinfo(dtype).max, (2, 700, 60), dtype, endpoint=True)
    with mosaic_writer(tmp_path, spec, (700, 60)) as writer:
        for top in range(0, 700, 90):
            writer.write(stored[:, top : top + 90])
    with rasterio.open(tmp_path / "p.tif") as probability, rasterio.open(tmp_path / "m.tif") as mask:
        assert (probability.read() == stored).all()
        top = {"uint8": 254}.get(dtype, 65534)
        assert (mask.read(1) == classify(as_levels(stored), CARD, 0.3, top=top)).all()
    assert level_path(tmp_path / "m.tif", 1).exists()


def test_an_error_of_the_background_write_is_raised_by_write_or_close(tmp_path: Path) -> None:
    wide = np.zeros((2, 512, 70), np.uint8)
    with pytest.raises(ValueError, match="could not broadcast"), mosaic_writer(tmp_path, MosaicSpec(), (700, 60)) as w:
        w.write(wide[:, :100])


def test_the_callers_error_is_not_hidden_by_the_writers(tmp_path: Path) -> None:
    def strips() -> Iterator[np.ndarray]:
        yield np.zeros((2, 100, 60), np.uint8)
        raise TransientError("first")

    with pytest.raises(TransientError, match="first"), mosaic_writer(tmp_path, MosaicSpec(), (700, 60)) as writer:
        [*map(writer.write, strips())]
