"""Streaming GeoTIFF writer: finished rows to tiled GeoTIFFs, one for each level of a mosaic.

Rows arrive top to bottom. Whole rows of blocks go to GDAL, which compresses them in their final form;
their halved rows go to the next level, and so on. So memory follows the width, not the height,
and no pixel is decoded again to make overviews.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import TransientError
from pipeline.grid import RasterGrid
from pipeline.mosaic.cog import check_blocks
from pipeline.mosaic.levels import BLOCK
from pipeline.mosaic.overviews import halve_mean, halve_mode, halve_slabs
from pipeline.storage import create_raster, limit_block_cache, open_raster, suppress_georef_warnings

ENCODERS = 4
"""GDAL's threads that compress blocks; they share one pool, however many files are written."""
EFFORT = {"zstd": {"zstd_level": 1}, "deflate": {"zlevel": 1}}
"""Compression levels: levels 3 and 6 make probabilities 4 and 8 % smaller, and take 1.4 and 7 times as long."""


@dataclass(frozen=True, kw_only=True)
class RasterProfile:
    """Georeferencing, type, bands and tags of a raster that is written."""

    grid: RasterGrid
    """Its grid."""
    dtype: str
    """numpy name of the stored type."""
    nodata: float
    """Stored value of invalid pixels."""
    names: tuple[str, ...]
    """Name of each band."""
    compress: Literal["zstd", "deflate"] = "zstd"
    """How blocks are compressed."""
    scale: float = 1.0
    """Quantity = stored value * scale."""
    colours: Mapping[int, tuple[int, int, int, int]] | None = None
    """Value -> RGBA, for class rasters."""
    tags: tuple[tuple[str, str], ...] = ()
    """Provenance."""


class StripWriter:
    """Writes rows, top to bottom, to a tiled GeoTIFF and to one more for each overview below it."""

    def __init__(self, path: Path, profile: RasterProfile, *, overviews: int = 0, level: int = 0):
        """Create the files.

        Args:
            path: the full size; overview `k` goes to `level_path(path, k)`.
            profile: what the full size is.
            overviews: how many levels below this one are written too.
            level: which level this one is, 0 = full size.
        """
        self._profile, self._path = profile, level_path(path, level)
        width = level_shape(profile.grid.shape, level)[1]
        self._dataset = create_level(path, profile, level)
        self._stack = ExitStack()
        # The stack unwinds backwards: store the rest, close the overviews, close the file, check its blocks.
        on_success(self._stack, self._check)
        self._stack.callback(self._dataset.close)
        self._below: StripWriter | None = None
        if overviews:
            below = StripWriter(path, profile, overviews=overviews - 1, level=level + 1)
            self._below = self._stack.enter_context(below)
        on_success(self._stack, self._store_rest)
        self._rows = np.empty((len(profile.names), BLOCK, width), profile.dtype)
        self._held = 0
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append `(bands, rows, width)`."""
        while rows.shape[1]:
            # Whole rows of blocks are written from the caller's array, uncopied.
            if not self._held and rows.shape[1] >= BLOCK:
                self._store(rows[:, :BLOCK])
                rows = rows[:, BLOCK:]
                continue
            taken = min(BLOCK - self._held, rows.shape[1])
            self._rows[:, self._held : self._held + taken] = rows[:, :taken]
            rows = rows[:, taken:]
            self._held += taken
            if self._held == BLOCK:
                self._store(self._rows)
                self._held = 0

    def _store(self, rows: NDArray[np.generic]) -> None:
        """Write a row of blocks, and its halved rows to the next level."""
        window = Window(0, self._done, rows.shape[2], rows.shape[1])
        try:
            self._dataset.write(rows, window=window)
        except RasterioError as error:
            raise _write_error(self._path, error) from error
        self._done += rows.shape[1]
        if self._below is not None:
            halve = halve_mean if self._profile.colours is None else halve_mode
            self._below.write(halve_slabs(halve, rows, self._profile.nodata))

    def _store_rest(self) -> None:
        if self._held:
            self._store(self._rows[:, : self._held])

    def _check(self) -> None:
        """Raise an error for blocks that GDAL, which writes late and closes silently, could not write."""
        try:
            check_blocks(self._path)
        except OSError as error:
            raise _write_error(self._path, error) from error


def on_success(stack: ExitStack, action: Callable[[], None]) -> None:
    """Register a callback of an exit stack that runs only if no error has been raised."""
    stack.push(lambda kind, error, trace: None if kind else action())


def level_path(path: Path, level: int) -> Path:
    """Path of a level of a raster: `x.tif`, `x.1.tif`, `x.2.tif`, ...

    >>> str(level_path(Path("x.tif"), 0)), str(level_path(Path("x.tif"), 2))
    ('x.tif', 'x.2.tif')
    """
    return path.with_suffix(f".{level}.tif") if level else path


def level_shape(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """Rows and columns of a level.

    >>> level_shape((5, 8), 1), level_shape((5, 8), 2)
    ((3, 4), (2, 2))
    """
    return -(-shape[0] // 2**level), -(-shape[1] // 2**level)


def create_level(path: Path, profile: RasterProfile, level: int, *, empty: bool = False) -> rasterio.io.DatasetWriter:
    """Create the file of one level; only the full size has georeferencing, band names and tags.

    Args:
        path: that of the full size.
        profile: that of the full size.
        level: 0 = full size.
        empty: True where no block will be written.
    """
    limit_block_cache()
    height, width = level_shape(profile.grid.shape, level)
    place = {} if level else {"crs": profile.grid.crs, "transform": profile.grid.transform}
    dataset = _create_quietly(
        level_path(path, level),
        height=height,
        width=width,
        count=len(profile.names),
        dtype=profile.dtype,
        nodata=profile.nodata,
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        compress=profile.compress,
        predictor=_predictor(profile),
        bigtiff="if_safer",
        photometric="minisblack",
        endianness="little",
        sparse_ok=empty,
        num_threads=ENCODERS,
        **place,
        **EFFORT[profile.compress],
    )
    _describe(dataset, profile, whole=level == 0)
    return dataset


def open_level(path: Path, level: int) -> rasterio.DatasetReader:
    """Open one level of a raster of a StripWriter."""
    with suppress_georef_warnings():
        return open_raster(level_path(path, level))


def _write_error(path: Path, error: Exception) -> TransientError:
    return TransientError(f"{path}: writing failed: {error}; is the disk full?")


def _predictor(profile: RasterProfile) -> int:
    """TIFF predictor: none for classes, floating point for floats, horizontal differences for levels."""
    if profile.colours is not None:
        return 1
    return 3 if profile.dtype == "float32" else 2


def _create_quietly(path: Path, **profile: object) -> rasterio.io.DatasetWriter:
    """Create without rasterio's warnings of missing georeferencing and of flipped identities: GeoTIFF keeps both."""
    with suppress_georef_warnings():
        return create_raster(path, driver="GTiff", **profile)


def _describe(dataset: rasterio.io.DatasetWriter, profile: RasterProfile, *, whole: bool) -> None:
    if profile.colours is not None:
        dataset.write_colormap(1, dict(profile.colours))
    else:
        dataset.colorinterp = (ColorInterp.gray,) + (ColorInterp.undefined,) * (len(profile.names) - 1)
    if not whole:
        return
    for number, name in enumerate(profile.names, start=1):
        dataset.set_band_description(number, name)
    if profile.scale != 1.0:
        dataset.scales = (profile.scale,) * len(profile.names)
        dataset.offsets = (0.0,) * len(profile.names)
    dataset.update_tags(**dict(profile.tags))
