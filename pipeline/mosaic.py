"""Finished strips -> Cloud-Optimized GeoTIFF, and blocks read back.

Strips go to a plain tiled GeoTIFF as they finish, whole blocks at a time, so memory does not follow
the scene. The finished file is then copied once by GDAL's COG driver, which adds the overviews;
its bytes depend on the pixels alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from pipeline.card import ModelCard
from pipeline.errors import ModelError, SceneError, WorldError
from pipeline.export_style import class_colour
from pipeline.grid import RasterGrid
from pipeline.handles import ThreadHandles, limit_block_cache
from pipeline.levels import TOP_LEVEL, LevelType, as_levels, stored_nodata

BLOCK = 512
"""Side of a storage block, px."""
ZSTD_LEVEL = 3
"""Far quicker than GDAL's default, 9, for files that are hardly larger."""
MASK_NODATA = 255
"""Nodata in `mask.tif`."""
CARD_TAG = "SCENEMILL_CARD"


@dataclass(frozen=True, kw_only=True)
class MosaicSpec:
    """How mosaics are stored."""

    dtype: LevelType = "uint8"
    """`uint8`: steps of 1/254; `uint16`: steps of 1/65534; `float32`: as computed."""
    compress: Literal["zstd", "deflate"] = "zstd"
    """zstd is smaller and faster; deflate opens in software older than 2019."""


@dataclass(frozen=True, kw_only=True)
class RasterForm:
    """What a raster of ours is, apart from its pixels."""

    grid: RasterGrid
    """Where it lies."""
    dtype: str
    """numpy name of the stored type."""
    nodata: float
    """Stored value of invalid pixels."""
    names: tuple[str, ...]
    """Name of each band."""
    scale: float = 1.0
    """Stored value times this is the quantity meant."""
    colours: Mapping[int, tuple[int, int, int, int]] | None = None
    """Value -> RGBA, for class rasters."""
    tags: tuple[tuple[str, str], ...] = ()
    """Provenance."""


def probability_form(grid: RasterGrid, card: ModelCard, spec: MosaicSpec, tags: Mapping[str, str]) -> RasterForm:
    """The form of `probability.tif`: a band per class, scaled so that GIS tools show 0..1."""
    return RasterForm(
        grid=grid,
        dtype=spec.dtype,
        nodata=stored_nodata(spec.dtype),
        names=card.classes,
        scale=1.0 if spec.dtype == "float32" else 1.0 / TOP_LEVEL[spec.dtype],
        tags=(*sorted(tags.items()), (CARD_TAG, replace(card, training={}).to_json())),
    )


def mask_form(grid: RasterGrid, card: ModelCard, tags: Mapping[str, str]) -> RasterForm:
    """The form of `mask.tif`: class values, 0 = none of them, 255 = nodata, with a colour table."""
    values = sorted({value for _, value, _ in card.foreground})
    colours = {0: (235, 235, 235, 255), MASK_NODATA: (255, 255, 255, 255)} | {
        v: (*class_colour(k), 255) for k, v in enumerate(values)
    }
    legend = {f"CLASS_{value}": name for _, value, name in card.foreground}
    return RasterForm(
        grid=grid,
        dtype="uint8",
        nodata=MASK_NODATA,
        names=("class",),
        colours=colours,
        tags=(*sorted(tags.items()), *sorted(legend.items())),
    )


class StripWriter:
    """Writes strips, top to bottom, to a tiled GeoTIFF; every block is written once."""

    def __init__(self, path: Path, form: RasterForm):
        """Create the file; `form` says what it holds."""
        limit_block_cache()
        grid = form.grid
        self._held: list[NDArray[np.generic]] = []
        self._row = 0
        self._dataset = _create(
            path,
            "w",
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=len(form.names),
            dtype=form.dtype,
            crs=grid.crs,
            transform=grid.transform,
            nodata=form.nodata,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="zstd",
            zstd_level=1,
            bigtiff="if_safer",
            photometric="minisblack",
        )
        _describe(self._dataset, form)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush(BLOCK * -(-self._rows_held // BLOCK))
        finally:
            self._dataset.close()

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append `(bands, rows, width)`."""
        self._held.append(rows)
        self._flush(self._rows_held // BLOCK * BLOCK)

    @property
    def _rows_held(self) -> int:
        return sum(rows.shape[1] for rows in self._held)

    def _flush(self, rows: int) -> None:
        if not rows:
            return
        held = np.concatenate(self._held, axis=1)
        ready, rest = held[:, :rows], held[:, rows:]
        window = Window(0, self._row, ready.shape[2], ready.shape[1])
        try:
            self._dataset.write(ready, window=window)
        except RasterioError as error:
            raise WorldError(f"{self._dataset.name}: writing failed: {error}; is the disk full?") from error
        self._row += ready.shape[1]
        self._held = [rest.copy()] if rest.shape[1] else []


def write_cog(parts: Sequence[tuple[Path, Window]], target: Path, form: RasterForm, *, compress: str) -> None:
    """Join the rasters of regions and store them as one COG with overviews.

    Args:
        parts: file and scene window of each region; the windows partition the scene.
        target: the COG.
        form: what the whole is.
        compress: `zstd` or `deflate`.

    Raises:
        WorldError: the disk is full or not writable.
    """
    if len(parts) == 1:
        _copy_as_cog(parts[0][0], target, form, compress)
        return
    whole = target.with_name(f"{target.stem}-whole.tif")
    with StripWriter(whole, form) as writer:
        for rows in _read_joined(parts):
            writer.write(rows)
    _copy_as_cog(whole, target, form, compress)
    whole.unlink()


def _copy_as_cog(source: Path, target: Path, form: RasterForm, compress: str) -> None:
    """GDAL's COG driver; classes keep the commonest value in overviews, quantities their mean."""
    classes = form.colours is not None
    effort = {"level": ZSTD_LEVEL} if compress == "zstd" else {}
    try:
        rasterio.shutil.copy(
            source,
            target,
            driver="COG",
            blocksize=BLOCK,
            compress=compress,
            predictor="no" if classes else "yes",
            overview_resampling="mode" if classes else "average",
            bigtiff="if_safer",
            num_threads="all_cpus",
            **effort,
        )
    except RasterioError as error:
        raise WorldError(f"{target}: writing failed: {error}; is the disk full?") from error


class MosaicReader:
    """Reads blocks of a probability mosaic, from any number of threads."""

    watch: Callable[[int], None] | None = None
    """Told the pixels of every block that is read."""

    def __init__(self, path: Path):
        """Open `probability.tif`.

        Raises:
            SceneError: the file is not a mosaic of ours.
        """
        self._handles = ThreadHandles(lambda: rasterio.open(path, driver="GTiff"))
        try:
            dataset = self._handles.get()
        except RasterioError as error:
            raise SceneError(f"{path}: cannot be opened as a mosaic: {error}") from error
        tags = dataset.tags()
        if CARD_TAG not in tags:
            self.close()
            raise SceneError(
                f"{path}: no probability mosaic of ours (it has no {CARD_TAG} tag); name a probability.tif"
            )
        self.tags: dict[str, str] = tags
        self.card = _card_of(tags[CARD_TAG], path)
        self.grid = RasterGrid(crs=dataset.crs, transform=dataset.transform, height=dataset.height, width=dataset.width)
        self.levels = TOP_LEVEL[dataset.dtypes[0]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all handles."""
        self._handles.close()

    def read_levels(self, window: Window) -> NDArray[np.uint16]:
        """`(classes, height, width)` levels: 0..`levels` mean probability 0..1, 65535 is invalid."""
        levels = as_levels(self._handles.get().read(window=window))
        if self.watch is not None:
            self.watch(int(window.width * window.height))
        return levels


def read_mask(path: Path, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], dict[int, tuple[int, int, int, int]]]:
    """`mask.tif` at screen size: `(h, w)` class values and the colour of each value."""
    with rasterio.open(path, driver="GTiff") as dataset:
        return dataset.read(1, out_shape=shape), dataset.colormap(1)


def _read_joined(parts: Sequence[tuple[Path, Window]], rows: int = BLOCK) -> Iterator[NDArray[np.generic]]:
    """Yield `(bands, <= rows, width)` of the whole, top to bottom."""
    width = max(window.col_off + window.width for _, window in parts)
    for top in sorted({window.row_off for _, window in parts}):
        beside = [(path, window) for path, window in parts if window.row_off == top]
        height = int(beside[0][1].height)
        for first in range(0, height, rows):
            pieces = [_read_piece(path, Window(0, first, w.width, min(rows, height - first))) for path, w in beside]
            whole = np.empty((*pieces[0].shape[:2], width), pieces[0].dtype)
            for (_, window), piece in zip(beside, pieces, strict=True):
                whole[:, :, window.col_off : window.col_off + window.width] = piece
            yield whole


def _read_piece(path: Path, window: Window) -> NDArray[np.generic]:
    with rasterio.open(path, driver="GTiff") as dataset:
        return np.asarray(dataset.read(window=window))


def _create(path: Path, mode: str, **profile: object) -> rasterio.io.DatasetWriter:
    """Open for writing, without rasterio's warning of transforms that are a flipped identity: GeoTIFF keeps them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **profile)


def _describe(dataset: rasterio.io.DatasetWriter, form: RasterForm) -> None:
    for number, name in enumerate(form.names, start=1):
        dataset.set_band_description(number, name)
    if form.scale != 1.0:
        dataset.scales = (form.scale,) * len(form.names)
        dataset.offsets = (0.0,) * len(form.names)
    if form.colours is not None:
        dataset.write_colormap(1, dict(form.colours))
    else:
        dataset.colorinterp = (ColorInterp.gray,) + (ColorInterp.undefined,) * (len(form.names) - 1)
    dataset.update_tags(**dict(form.tags))


def _card_of(text: str, path: Path) -> ModelCard:
    try:
        return ModelCard.from_json(text)
    except ModelError as error:
        raise SceneError(f"{path}: its {CARD_TAG} tag is not readable: {error}") from error
