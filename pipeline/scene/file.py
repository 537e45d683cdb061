"""Raster files of a scene: open, describe, read stored pixels. Only this module opens source rasters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import DamagedSceneError, SceneError, ScenemillError, TransientError
from pipeline.grid import RasterGrid, is_on_earth
from pipeline.scene.bands import BandFile, catalog_values
from pipeline.scene.checks import check_size, check_type, fingerprint, resident_bytes, resolve_scaling
from pipeline.scene.dates import parse_tiff_date
from pipeline.scene.georeference import SourceReader, file_grid
from pipeline.scene.spec import ReadingTerms
from pipeline.scene.validity import (
    NodataWhen,
    finite_pixels,
    present_pixels,
    resolve_alpha,
    resolve_nodata,
    tagged_alpha,
)
from pipeline.storage import (
    FileFacts,
    Location,
    check_files,
    check_sidecars,
    check_whole,
    gdal_env,
    is_missing,
    is_refused,
    is_undecodable,
    open_whole,
    probe_file,
    redirect_error,
    settle_rules,
    suppress_georef_warnings,
    unreadable_error,
)


@dataclass(frozen=True, kw_only=True)
class SceneFile:
    """A raster file and its bands that belong to a scene; plain data, no open handle."""

    location: Location
    """Where it lies."""
    driver: str
    """The GDAL driver that opens it."""
    grid: RasterGrid
    """The pixel plane that it stores."""
    block_shape: tuple[int, int]
    """Rows and columns of one storage block."""
    bands: tuple[str, ...]
    """Names of the bands read of it."""
    band_numbers: tuple[int, ...]
    """Their 1-based numbers."""
    dtype: str
    """numpy name of the stored type, wide enough for these bands."""
    scales: tuple[float, ...]
    """Scale of each of them, 1 by default."""
    offsets: tuple[float, ...]
    """Offset of each, 0 by default."""
    nodata: tuple[float | None, ...]
    """Nodata value of each; None where there is none (NaN is always nodata)."""
    alpha_number: int | None
    """1-based number of the alpha band; its 0 is nodata."""
    mask: Literal["none", "dataset", "band"]
    """Whether an internal mask or a .msk sidecar decides, for all bands at once or for each."""
    size_bytes: int | None
    """Size of the file, None when remote."""
    modified_ns: int | None
    """Modification time of the file, None when remote."""
    resident_bytes: int = 0
    """Bytes of decoded blocks to keep while parts of them are read; 0 for small blocks. See `checks.resident_bytes`."""
    fingerprint: str | None = None
    """Digest of a remote file's version, if reported, and of its block offsets; see `checks.fingerprint`."""
    acquired: str | None = None
    """When it was taken, ISO 8601 in UTC; None when unknown."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Pixels of some bands in a window, and their validity."""

    bands: NDArray[np.generic]
    """`(bands, height, width)`."""
    present: NDArray[np.bool_]
    """`(height, width)`, False = nodata by value, mask or alpha."""
    finite: NDArray[np.bool_] | None
    """`(height, width)`, False = NaN or infinite, or outside the file; None where all are finite."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """`(height, width)`, True = real data."""
        return self.present if self.finite is None else self.present & self.finite


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """A raster file opened for reading its header."""

    dataset: rasterio.DatasetReader
    """The handle."""
    location: Location
    """Where it lies."""
    facts: FileFacts
    """Size, time and version before it was opened."""


@contextmanager
def open_header(place: Location, drivers: Sequence[str], *, without_sidecars: bool = False) -> Iterator[OpenFile]:
    """Open a raster for reading its header.

    Args:
        place: where it lies.
        drivers: the GDAL drivers that may open it.
        without_sidecars: True skips the sidecars of a remote file.
    """
    place = settle_rules(place)
    facts = probe_file(place, sidecars=not without_sidecars)
    if not place.is_remote:
        check_whole(place)
    with gdal_env(place, sidecars=facts.sidecars), _translate_header_errors(place):
        # Before the raster is opened: GDAL opens some sidecars with it.
        check_sidecars(place, facts)
        with _open(place, drivers) as dataset:
            check_files(dataset, place, facts)
            yield OpenFile(dataset=dataset, location=place, facts=facts)


def describe_file(
    file: OpenFile, terms: ReadingTerms, numbers: Mapping[str, int], listed: BandFile | None = None
) -> SceneFile:
    """Resolve how a file is read, or refuse it.

    Args:
        file: the open file.
        terms: on which it is read.
        numbers: name and 1-based number of each band that is read of it.
        listed: the values of a catalog; these take precedence over the file's.
    """
    dataset, place, spec = file.dataset, file.location, terms.spec
    if max(numbers.values()) > dataset.count:
        raise SceneError(f"{place}: the catalog names more bands of it than the {dataset.count} it has; correct that")
    # Cheap checks of the header first: the grid may need the file opened once more.
    check_type(dataset, numbers, terms.card, place)
    check_size(dataset, spec, place)
    reopen = partial(_open_source, place, dataset.driver)
    grid = file_grid(dataset, spec, place, reopen=reopen, georeferenced=terms.georeferenced)
    scales, offsets = resolve_scaling(dataset, numbers, spec, listed, place)
    chosen = [*numbers.values()]
    kinds = dataset.dtypes
    named, mask = resolve_nodata(dataset, chosen, spec, catalog_values(listed, "nodata", chosen))
    tagged = tagged_alpha(dataset, spec)
    resident = resident_bytes(dataset, [*chosen, tagged] if tagged else chosen, place, masked=mask != "none")
    # Reads a few pixels, so it comes after all checks of the header.
    alpha = resolve_alpha(dataset, spec, numbers, place)
    return SceneFile(
        location=place,
        driver=dataset.driver,
        grid=grid,
        block_shape=dataset.block_shapes[0],
        bands=tuple(numbers),
        band_numbers=tuple(chosen),
        dtype=np.result_type(*{kinds[n - 1] for n in chosen}).name,
        scales=scales,
        offsets=offsets,
        nodata=named,
        alpha_number=alpha,
        mask=mask,
        size_bytes=file.facts.size_bytes,
        modified_ns=file.facts.modified_ns,
        resident_bytes=resident,
        fingerprint=fingerprint(dataset, file.facts.version) if place.is_remote else None,
        acquired=parse_tiff_date(dataset.tags().get("TIFFTAG_DATETIME")),
    )


def reopen_file(file: SceneFile) -> rasterio.DatasetReader:
    """A new handle; without rasterio's warning where georeferencing is known to be missing."""
    if is_on_earth(file.grid.crs):
        return _open_source(file.location, file.driver)
    return _open_quietly(file.location, file.driver)


def read_stored(
    dataset: rasterio.DatasetReader, file: SceneFile, window: Window, *, dtype: str, when: NodataWhen
) -> Pixels:
    """Pixels of a window of the file itself, in the type `dtype`, with their validity."""
    # Alpha is read in the same call as the bands, so that interleaved blocks are decoded once.
    numbers = [*file.band_numbers] + ([file.alpha_number] if file.alpha_number else [])
    pixels = _read_bands(dataset, numbers, window, dtype)
    bands = pixels[: len(file.band_numbers)]
    present = present_pixels(bands, file.nodata, when)
    if file.alpha_number:
        present &= pixels[-1] > 0
    if file.mask == "dataset":
        present &= dataset.read_masks(file.band_numbers[0], window=window) > 0
    elif file.mask == "band":
        masks = dataset.read_masks(file.band_numbers, window=window) > 0
        present &= masks.any(axis=0) if when == "all_bands" else masks.all(axis=0)
    return Pixels(bands=bands, present=present, finite=finite_pixels(bands))


def _read_bands(dataset: rasterio.DatasetReader, numbers: list[int], window: Window, dtype: str) -> NDArray[np.generic]:
    """Bands of a window in one call, or in one for each where their stored types differ, as they may in a VRT."""
    kinds = dataset.dtypes
    if len({kinds[number - 1] for number in numbers}) == 1:
        pixels: NDArray[np.generic] = dataset.read(numbers, window=window, out_dtype=dtype)
        return pixels
    return np.stack([dataset.read(number, window=window, out_dtype=dtype) for number in numbers])


@contextmanager
def translate_read_errors(file: SceneFile, window: Window) -> Iterator[None]:
    """Translate errors of GDAL while a window is read into ours, which name the file."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise _read_error(file.location, window, error) from error


@contextmanager
def _translate_header_errors(place: Location) -> Iterator[None]:
    """Translate errors of GDAL about single tags, some of which are undecodable text."""
    try:
        yield
    except (CPLE_BaseError, UnicodeDecodeError) as error:
        raise DamagedSceneError(f"{place}: its header is damaged: {error}; fetch or write the file again") from error


def _open(place: Location, drivers: Sequence[str], *, is_second: bool = False) -> rasterio.DatasetReader:
    errors: list[str] = []
    for driver in drivers:
        try:
            dataset = _open_quietly(place, driver)
        except RasterioError as error:
            errors.append(str(error))
        except OSError as error:
            raise TransientError(
                f"{place}: cannot be opened: {error}; check the disk or the network and run again"
            ) from error
        else:
            if dataset.count == 0:
                dataset.close()
                raise SceneError(f"{place}: holds no raster band (a container of subdatasets?); name one raster file")
            return dataset
    if not place.is_remote:
        raise unreadable_error(place, drivers, errors)
    check_whole(place)
    failure = unreadable_error(place, drivers, errors)
    # Damage is the same at a second attempt; a fault of the network in between hardly is.
    if is_second or isinstance(failure, TransientError):
        raise failure
    return _open(place, drivers, is_second=True)


def _open_quietly(place: Location, driver: str) -> rasterio.DatasetReader:
    """Open without rasterio's warning of missing georeferencing: such a scene is refused with an error."""
    with suppress_georef_warnings():
        return _open_source(place, driver)


def _open_source(place: Location, driver: str) -> rasterio.DatasetReader:
    return open_whole(place, driver, SourceReader)


def _read_error(place: Location, window: Window, error: Exception) -> ScenemillError:
    where = f"rows {window.row_off}..{window.row_off + window.height - 1}, columns {window.col_off}.."
    where += str(window.col_off + window.width - 1)
    cause = str(error.__cause__ or error).strip().rstrip(".")
    if place.is_remote:
        if is_refused(error):
            return redirect_error(place)
        try:
            check_whole(place)
        except SceneError as found:
            return found
        except TransientError:
            pass
    if is_missing(place) or (place.is_remote and not is_undecodable(error)):
        return TransientError(f"{place}: reading {where} failed: {cause}; check the network or disk and run again")
    return DamagedSceneError(
        f"{place}: damaged at {where}: {cause}; fetch or write the file again, nothing of it was published"
    )
