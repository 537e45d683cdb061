"""Describe a scene, and read pixels and validity of one window of it.

This is the only module that opens source rasters. `describe_scene` reads the header once, resolves
every question about it (driver, bands, nodata, CRS, resolution) or refuses the scene with the reason;
`SceneReader` then reads windows from any number of threads, one dataset handle per thread.
"""

from __future__ import annotations

import difflib
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from pipeline.card import ModelCard
from pipeline.dates import parse_tiff_date
from pipeline.errors import DamagedSceneError, SceneError, SettingsError, WorldError
from pipeline.georeference import crs_of, file_grid, is_on_earth, resolve_grid
from pipeline.grid import RasterGrid
from pipeline.handles import ThreadHandles
from pipeline.header import check_size, check_type, find_bands, fingerprint
from pipeline.location import Location, resolve_location
from pipeline.resample import Taps, plan_taps, resample
from pipeline.validity import resolve_alpha, resolve_mask, resolve_nodata, valid_pixels

MOST_RESAMPLED_PIXELS = 2**22
"""Stored pixels that are held at once while a window is resampled."""
SILENCING = threading.Lock()
"""Held by threads around what silences warnings with `warnings.catch_warnings`, which must not interleave."""


@dataclass(frozen=True, kw_only=True)
class ReadingSpec:
    """How scenes are read, and what to correct about them."""

    bands: Mapping[str, int] = field(default_factory=dict)
    """Band name -> 1-based band number, where the file does not say or says it wrongly."""
    crs: str | None = None
    """CRS of scenes that carry none, e.g. `EPSG:32633`; never overrides a scene's own."""
    nodata: float | None = None
    """Pixel value that means nodata, in place of the file's tag."""
    ignore_nodata: bool = False
    """Take the file's nodata tag for ordinary data."""
    ignore_alpha: bool = False
    """Take a band tagged alpha for ordinary data."""
    nodata_when: Literal["all_bands", "any_band"] = "all_bands"
    """A pixel is nodata when all bands the model uses hold nodata, or when any does. NaN in any band always is."""
    resolution_m: float | Literal["native", "model"] = "native"
    """Resample while reading: to metres on the ground, to the model's resolution, or not at all."""
    resolution_tolerance: float = 0.25
    """Relative difference accepted between the resolutions of scene and model."""
    drivers: tuple[str, ...] = ("GTiff",)
    """GDAL drivers allowed to open scenes; add `VRT`, `JP2OpenJPEG`, `JPEG`, ... to trust them."""
    max_pixels: int = 100_000_000_000
    """Scenes with more pixels are refused: a small file can declare any size."""
    threads: int = 0
    """Threads that decode windows; 0 takes one per CPU, at most 12."""

    def __post_init__(self) -> None:
        if not isinstance(self.resolution_m, str) and not 0 < self.resolution_m < math.inf:
            raise SettingsError(f"resolution_m must be over 0 m and finite, not {self.resolution_m}")
        if not 0 <= self.resolution_tolerance < math.inf:
            raise SettingsError(f"resolution_tolerance must be at least 0 and finite, not {self.resolution_tolerance}")
        if self.max_pixels < 1:
            raise SettingsError(f"max_pixels must be at least 1, not {self.max_pixels}")
        if self.threads < 0:
            raise SettingsError(f"threads must be at least 0, not {self.threads}")
        if any(number < 1 for number in self.bands.values()):
            raise SettingsError(f"bands must map names to 1-based band numbers, not {dict(self.bands)}")
        if self.crs is not None:
            crs_of(self.crs)
        if not self.drivers:
            raise SettingsError("drivers must name at least one GDAL driver, e.g. [GTiff]")
        for driver in self.drivers:
            _check_driver(driver)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything the pipeline needs to know of one raster; plain data, no open handle."""

    id: str
    """Name of the scene and of its output folder."""
    location: Location
    """Where it lies."""
    driver: str
    """The GDAL driver that opens it."""
    grid: RasterGrid
    """The pixel plane that is read: the file's own, or its resampled form."""
    file_shape: tuple[int, int]
    """Rows and columns stored in the file; differs from `grid` only when resampled."""
    block_shape: tuple[int, int]
    """Rows and columns of one storage block of the file."""
    bands: tuple[str, ...]
    """Names of the bands read, in the model's order."""
    band_numbers: tuple[int, ...]
    """Their 1-based numbers in the file."""
    dtype: str
    """numpy name of the stored type, wide enough for all bands."""
    scales: tuple[float, ...]
    """Scale tag of each band read, 1 when absent."""
    offsets: tuple[float, ...]
    """Offset tag of each band read, 0 when absent."""
    nodata: tuple[float | None, ...]
    """Nodata value of each band read; None where there is none (NaN is always nodata)."""
    nodata_when: Literal["all_bands", "any_band"]
    """Whether all bands or any band must hold nodata."""
    alpha_number: int | None
    """1-based number of the alpha band; its 0 is nodata."""
    mask: Literal["none", "dataset", "band"]
    """Whether an internal mask or a .msk sidecar decides, for all bands at once or for each."""
    size_bytes: int | None
    """Size of the file, None when remote."""
    modified_ns: int | None
    """Modification time of the file, None when remote."""
    fingerprint: str | None = None
    """Digest of where a remote TIFF keeps its blocks and how long they are; changes when compressed content does."""
    acquired: str | None = None
    """When it was taken, ISO 8601 in UTC; None when the file does not say."""

    @property
    def resampled(self) -> bool:
        """True when reading changes the pixel size."""
        return self.file_shape != self.grid.shape


def describe_scene(
    location: str | Path,
    spec: ReadingSpec | None = None,
    *,
    card: ModelCard | None = None,
    scene_id: str | None = None,
    placed: bool = True,
) -> Scene:
    """Read a raster's header and settle how it is read, or refuse it.

    Args:
        location: a path, or an `s3://`, `https://` or `http://` address.
        spec: corrections and permissions.
        card: the model that will see it; None takes every band that is not alpha.
        scene_id: name of the scene; the file's stem when None.
        placed: False lets a picture without georeferencing be a plane of its own pixels, for training alone.

    Raises:
        SceneError: the scene cannot be processed correctly, or does not fit the model.
        DamagedSceneError: the header cannot be decoded.
        WorldError: a remote scene cannot be reached.
    """
    spec = spec or ReadingSpec()
    place = resolve_location(location)
    name = _folder_name(scene_id or place.stem)
    with place.environment(), _damage_told(place), _open(place, spec.drivers) as dataset:
        numbers = find_bands(dataset, spec, card, place)
        check_type(dataset, numbers, card, place)
        check_size(dataset, spec, place)
        reopen = partial(rasterio.open, place.gdal_path, driver=dataset.driver)
        stored = file_grid(dataset, spec, place, reopen=reopen, placed=placed)
        grid = resolve_grid(stored, spec, card, place)
        alpha = resolve_alpha(dataset, spec, numbers, place)
        return Scene(
            id=name,
            location=place,
            driver=dataset.driver,
            grid=grid,
            file_shape=dataset.shape,
            block_shape=dataset.block_shapes[0],
            bands=tuple(numbers),
            band_numbers=tuple(numbers.values()),
            dtype=np.result_type(*(dataset.dtypes[n - 1] for n in numbers.values())).name,
            scales=tuple(float(dataset.scales[n - 1]) for n in numbers.values()),
            offsets=tuple(float(dataset.offsets[n - 1]) for n in numbers.values()),
            nodata=tuple(resolve_nodata(dataset, n, spec) for n in numbers.values()),
            nodata_when=spec.nodata_when,
            alpha_number=alpha,
            mask=resolve_mask(dataset, numbers.values()),
            size_bytes=place.size_bytes,
            modified_ns=place.modified_ns,
            fingerprint=fingerprint(dataset) if place.is_remote else None,
            acquired=parse_tiff_date(dataset.tags().get("TIFFTAG_DATETIME")),
        )


def remote_fingerprint(place: Location, drivers: Sequence[str]) -> str:
    """What a remote file is known by, from its header alone; see `header.fingerprint`.

    Raises:
        SceneError: no raster that these drivers open, or a damaged one.
        WorldError: the network fails.
    """
    with place.environment(), _damage_told(place), _open(place, drivers) as dataset:
        return fingerprint(dataset)


class SceneReader:
    """Reads windows of one scene; safe to use from many threads, each with its own handle."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._handles = ThreadHandles(lambda: _open_again(scene))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every thread's handle; no thread may be reading."""
        self._handles.close()

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and validity of a window that lies inside the scene's grid.

        Returns:
            `(bands, height, width)` in the stored dtype, and `(height, width)` bool, True = real data.

        Raises:
            DamagedSceneError: the bytes cannot be decoded.
            WorldError: a remote read failed.
        """
        scene = self.scene
        try:
            with scene.location.environment():
                return self._read(self._handles.get(), window)
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise _read_fault(scene, window, error) from error

    def _read(self, dataset: rasterio.DatasetReader, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        if not self.scene.resampled:
            return self._read_stored(dataset, window)
        rows, cols = self._taps(window)
        (top, bottom), (left, right) = rows.span, cols.span
        if (bottom - top) * (right - left) > MOST_RESAMPLED_PIXELS and window.height * window.width > 1:
            return self._read_halves(dataset, window)
        return resample(*self._read_stored(dataset, Window(left, top, right - left, bottom - top)), rows, cols)

    def _taps(self, window: Window) -> tuple[Taps, Taps]:
        (rows, cols), (stored_rows, stored_cols) = self.scene.grid.shape, self.scene.file_shape
        return (
            plan_taps(stored_rows, rows, window.row_off, window.row_off + window.height),
            plan_taps(stored_cols, cols, window.col_off, window.col_off + window.width),
        )

    def _read_halves(
        self, dataset: rasterio.DatasetReader, window: Window
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read a window in two parts, so that memory does not follow the ratio of resolutions."""
        if window.height > 1:
            half, axis = window.height // 2, 0
            parts = (
                Window(window.col_off, window.row_off, window.width, half),
                Window(window.col_off, window.row_off + half, window.width, window.height - half),
            )
        else:
            half, axis = window.width // 2, 1
            parts = (
                Window(window.col_off, window.row_off, half, 1),
                Window(window.col_off + half, window.row_off, window.width - half, 1),
            )
        pixels, valid = zip(*(self._read(dataset, part) for part in parts), strict=True)
        return np.concatenate(pixels, axis=axis + 1), np.concatenate(valid, axis=axis)

    def _read_stored(
        self, dataset: rasterio.DatasetReader, window: Window
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and validity of a window of the file itself."""
        scene = self.scene
        numbers = [*scene.band_numbers] + ([scene.alpha_number] if scene.alpha_number else [])
        pixels = dataset.read(numbers, window=window, out_dtype=scene.dtype)
        bands = pixels[: len(scene.band_numbers)]
        valid = valid_pixels(bands, scene.nodata, scene.nodata_when)
        if scene.alpha_number:
            valid &= pixels[-1] > 0
        if scene.mask == "dataset":
            valid &= dataset.read_masks(scene.band_numbers[0], window=window) > 0
        elif scene.mask == "band":
            masks = dataset.read_masks(scene.band_numbers, window=window) > 0
            valid &= masks.any(axis=0) if scene.nodata_when == "all_bands" else masks.all(axis=0)
        return bands, valid


@contextmanager
def _damage_told(place: Location) -> Iterator[None]:
    """GDAL's complaints about single tags reach us as errors of its own or as undecodable text."""
    try:
        yield
    except (CPLE_BaseError, UnicodeDecodeError) as error:
        raise DamagedSceneError(f"{place}: its header is damaged: {error}; fetch or write the file again") from error


def _folder_name(name: str) -> str:
    """The name, which becomes a folder, or an error when it would lead elsewhere."""
    if name in ("", ".", "..") or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise SettingsError(f"scene_id must be the plain name of a visible folder, not {name!r}")
    return name


def _open(place: Location, drivers: Sequence[str]) -> rasterio.DatasetReader:
    place.check_exists()
    faults = []
    for driver in drivers:
        try:
            dataset = _open_quietly(place, driver)
        except RasterioError as error:
            faults.append(str(error))
        except OSError as error:
            raise WorldError(
                f"{place}: cannot be opened: {error}; check the disk or the network and run again"
            ) from error
        else:
            if dataset.count == 0:
                dataset.close()
                raise SceneError(f"{place}: holds no raster band (a container of subdatasets?); name one raster file")
            return dataset
    if place.is_remote:
        raise WorldError(f"{place}: cannot be opened: {faults[0]}; check the address, credentials and network")
    raise place.unreadable(drivers, faults)


def _open_quietly(place: Location, driver: str) -> rasterio.DatasetReader:
    """Open without rasterio's warning of missing georeferencing, which we answer with a refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset: rasterio.DatasetReader = rasterio.open(place.gdal_path, driver=driver)
    return dataset


def _open_again(scene: Scene) -> rasterio.DatasetReader:
    """A new handle, without the warning where we know that georeferencing is missing."""
    if is_on_earth(scene.grid.crs):
        return rasterio.open(scene.location.gdal_path, driver=scene.driver)
    with SILENCING:
        return _open_quietly(scene.location, scene.driver)


def _check_driver(name: str) -> None:
    with rasterio.Env() as env:
        known = env.drivers()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1)
        hint = f"; did you mean {next(k for k in known if k.lower() == close[0])}?" if close else ""
        raise SettingsError(f"drivers must name GDAL drivers of this build, not {name!r}{hint}")


def _read_fault(scene: Scene, window: Window, error: Exception) -> DamagedSceneError | WorldError:
    where = f"rows {window.row_off}..{window.row_off + window.height - 1}, columns {window.col_off}.."
    where += str(window.col_off + window.width - 1)
    cause = str(error.__cause__ or error).strip().rstrip(".")
    if scene.location.is_remote or scene.location.has_vanished:
        return WorldError(f"{scene.location}: reading {where} failed: {cause}; check the network or disk and run again")
    return DamagedSceneError(
        f"{scene.location}: damaged at {where}: {cause}; fetch or write the file again, nothing of it was published"
    )
