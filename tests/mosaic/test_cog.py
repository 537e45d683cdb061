"""Moved blocks make a COG that independent readers accept, whatever the regions and the flavour of TIFF."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window
from rio_cogeo import cog_validate

from pipeline.errors import TransientError
from pipeline.grid.raster_grid import RasterGrid
from pipeline.model.card import ModelCard
from pipeline.mosaic.cog import MAX_CLASSIC_BYTES, CogLevel, TiffPart, check_blocks, write_levels
from pipeline.mosaic.levels import BLOCK
from pipeline.mosaic.overviews import halve_mean, halve_mode, overview_count
from pipeline.mosaic.strips import RasterProfile, StripWriter, create_level, level_path
from pipeline.mosaic.writer import MosaicSpec, cog_writer, mask_profile, probability_profile, write_cog

CARD = ModelCard(bands=("red",), classes=("roof", "road"))


def form_of(kind: str, shape: tuple[int, int], spec: MosaicSpec | None = None) -> RasterProfile:
    place = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    grid = RasterGrid(crs=CRS.from_epsg(32633), transform=place, height=shape[0], width=shape[1])
    make = probability_profile if kind == "probability" else mask_profile
    return make(grid, CARD, spec or MosaicSpec(), {"SCENEMILL_SCENE": "here"})


def pixels_of(profile: RasterProfile) -> NDArray[np.generic]:
    """Smooth levels or large classes, with a hole."""
    rows, cols = np.indices(profile.grid.shape)
    field = (np.sin(rows / 37) * np.cos(cols / 53) + 1) / 2
    top = 3 if profile.colours else {"uint8": 255, "uint16": 65535, "float32": 1}[profile.dtype]
    pixels = np.stack([(field * (top - band) * 0.99).astype(profile.dtype) for band in range(len(profile.names))])
    pixels[:, 100:333, 77:400] = profile.nodata
    return pixels


def write_parts(
    folder: Path, profile: RasterProfile, pixels: NDArray[np.generic], rows: list[int], cols: list[int]
) -> list[tuple[Path, Window]]:
    """The scene cut at rows and columns, each part written in strips of its own height."""
    height, width = profile.grid.shape
    tops, lefts = [0, *rows, height], [0, *cols, width]
    parts = []
    for top, bottom in pairwise(tops):
        for left, right in pairwise(lefts):
            window = Window(left, top, right - left, bottom - top)
            path = folder / f"{top}-{left}.tif"
            own = pixels[:, top:bottom, left:right]
            part = RasterProfile(**{**vars(profile), "grid": profile.grid.part(window)})
            with StripWriter(path, part, overviews=overview_count(profile.grid.shape, BLOCK)) as writer:
                for first in range(0, own.shape[1], 100 + left % 333):
                    writer.write(own[:, first : first + 100 + left % 333])
            parts.append((path, window))
    return parts


CUTS = st.lists(st.sampled_from([1, 2, 511, 512, 700, 1024, 1300]), unique=True, max_size=2).map(sorted)


@pytest.mark.parametrize("kind", ["probability", "mask"])
def test_the_bytes_of_a_cog_do_not_depend_on_regions_and_strips(tmp_path: Path, kind: str) -> None:
    profile = form_of(kind, (1301, 1540))
    pixels = pixels_of(profile)
    with cog_writer(tmp_path / "whole.tif", profile) as writer:
        writer.write(pixels)

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(CUTS.filter(lambda cuts: 1301 not in cuts), CUTS)
    def check(rows: list[int], cols: list[int]) -> None:
        write_cog(write_parts(tmp_path, profile, pixels, rows, cols), tmp_path / "cut.tif", profile)
        assert (tmp_path / "cut.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()

    check()


@pytest.mark.parametrize("cuts", [([], []), ([512], [1024]), ([777], [])])
@pytest.mark.parametrize(
    "spec",
    [MosaicSpec(), MosaicSpec(compress="deflate"), MosaicSpec(dtype="uint16"), MosaicSpec(dtype="float32")],
    ids=["uint8", "deflate", "uint16", "float32"],
)
def test_every_level_reads_back_as_the_halves_of_the_one_before(
    tmp_path: Path, spec: MosaicSpec, cuts: tuple[list[int], list[int]]
) -> None:
    profile = form_of("probability", (1100, 1700), spec)
    pixels = pixels_of(profile)
    write_cog(write_parts(tmp_path, profile, pixels, *cuts), tmp_path / "x.tif", profile)
    check_levels(tmp_path / "x.tif", pixels, profile)


def check_levels(path: Path, pixels: NDArray[np.generic], profile: RasterProfile) -> None:
    assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), pixels, equal_nan=True)
        assert dataset.overviews(1) == [2, 4]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags()["SCENEMILL_SCENE"] == "here"
        assert dataset.crs == profile.grid.crs
        assert dataset.transform == profile.grid.transform
    for level in range(2):
        pixels = (halve_mode if profile.colours else halve_mean)(pixels, profile.nodata)
        with rasterio.open(path, overview_level=level) as dataset:
            assert np.array_equal(dataset.read(), pixels, equal_nan=True)
            assert np.array_equal(dataset.nodata, profile.nodata, equal_nan=True)


def test_from_the_first_block_on_the_file_is_the_one_that_gdals_driver_writes(tmp_path: Path) -> None:
    profile = form_of("probability", (1100, 1700))
    write_cog(write_parts(tmp_path, profile, pixels_of(profile), [512], []), tmp_path / "ours.tif", profile)
    options = {"blocksize": BLOCK, "compress": "zstd", "level": 1, "predictor": "yes"}
    rasterio.shutil.copy(
        tmp_path / "ours.tif", tmp_path / "gdal.tif", driver="COG", overviews="force_use_existing", **options
    )
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours.tif", "gdal.tif"))
    assert abs(len(ours) - len(theirs)) < 500
    directories = 4096
    assert ours[directories - len(theirs) :] == theirs[directories:]


def test_a_mask_keeps_its_colours_in_every_level(tmp_path: Path) -> None:
    profile = form_of("mask", (1100, 1700))
    pixels = pixels_of(profile)
    write_cog(write_parts(tmp_path, profile, pixels, [], []), tmp_path / "x.tif", profile)
    check_levels(tmp_path / "x.tif", pixels, profile)
    for options in ({}, {"overview_level": 0}, {"overview_level": 1}):
        with rasterio.open(tmp_path / "x.tif", **options) as dataset:
            assert dataset.colormap(1)[1] == profile.colours[1]


@pytest.mark.parametrize("shape", [(1, 1), (5, 600), (513, 700)])
def test_small_and_narrow_rasters_are_cogs_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    profile = form_of("mask", shape)
    pixels = np.ones((1, *shape), np.uint8)
    with cog_writer(tmp_path / "x.tif", profile) as writer:
        writer.write(pixels)
    assert cog_validate(tmp_path / "x.tif", strict=True, quiet=True) == (True, [], [])
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert (dataset.read() == pixels).all()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tif"]


@pytest.mark.parametrize(("largest", "magic"), [(MAX_CLASSIC_BYTES, b"II*\0"), (1000, b"II+\0")])
def test_a_file_too_large_for_tiff_is_a_bigtiff(tmp_path: Path, largest: int, magic: bytes) -> None:
    profile = form_of("probability", (1100, 1700))
    pixels = pixels_of(profile)
    ((path, _),) = write_parts(tmp_path, profile, pixels, [], [])
    levels = [
        CogLevel(template=level_path(path, k), parts=(TiffPart(path=level_path(path, k), row=0, col=0),))
        for k in range(3)
    ]
    write_levels(tmp_path / "x.tif", levels, max_classic_bytes=largest)
    assert (tmp_path / "x.tif").read_bytes()[:4] == magic
    check_levels(tmp_path / "x.tif", pixels, profile)


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_truncated_raster_is_detected(tmp_path: Path, kept: float) -> None:
    profile = form_of("probability", (1100, 1700))
    ((path, window),) = write_parts(tmp_path, profile, pixels_of(profile), [], [])
    check_blocks(path)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * kept))
    with pytest.raises(OSError, match=r"lacks blocks|ends too early"):
        check_blocks(path)
    with pytest.raises(TransientError, match="disk full"):
        write_cog([(path, window)], tmp_path / "x.tif", profile)


def test_blocks_that_were_never_written_are_missed(tmp_path: Path) -> None:
    create_level(tmp_path / "x.tif", form_of("mask", (1100, 1700)), 0, empty=True).close()
    with pytest.raises(OSError, match="lacks blocks"):
        check_blocks(tmp_path / "x.tif")


def test_the_last_byte_of_every_level_is_missed(tmp_path: Path) -> None:
    profile = form_of("probability", (1100, 1700))
    write_parts(tmp_path, profile, pixels_of(profile), [], [])
    for level in range(3):
        path = level_path(tmp_path / "0-0.tif", level)
        check_blocks(path)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
        with pytest.raises(OSError, match="lacks blocks"):
            check_blocks(path)


@pytest.mark.parametrize("level", range(3))
def test_a_level_that_gdal_stored_in_part_is_noticed_when_it_is_closed(tmp_path: Path, level: int) -> None:
    """As on a full disk, where GDAL writes late and closes without an error."""
    profile = form_of("probability", (1100, 1700))
    pixels, path = pixels_of(profile), level_path(tmp_path / "x.tif", level)
    with StripWriter(tmp_path / "x.tif", profile, overviews=2) as writer:
        writer.write(pixels)
    whole = path.read_bytes()
    writer = StripWriter(tmp_path / "x.tif", profile, overviews=2)
    writer.write(pixels)
    path.unlink()
    path.write_bytes(whole[:-1])
    with pytest.raises(TransientError, match=f"{path.name}: writing failed: .*is the disk full"):
        writer.__exit__(None, None, None)


def test_a_file_of_the_largest_size_of_tiff_is_still_one(tmp_path: Path) -> None:
    profile = form_of("mask", (600, 700))
    ((path, _),) = write_parts(tmp_path, profile, pixels_of(profile), [], [])
    levels = [
        CogLevel(template=level_path(path, k), parts=(TiffPart(path=level_path(path, k), row=0, col=0),))
        for k in range(2)
    ]
    write_levels(tmp_path / "x.tif", levels)
    size = (tmp_path / "x.tif").stat().st_size
    for limit, magic in ((size, b"II*\0"), (size - 1, b"II+\0")):
        write_levels(tmp_path / "x.tif", levels, max_classic_bytes=limit)
        assert (tmp_path / "x.tif").read_bytes()[:4] == magic
