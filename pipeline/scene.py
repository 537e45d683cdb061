"""Describe a scene, and read pixels and validity of one window of it.

This is the only module that opens source rasters. `describe_scene` reads the header once, resolves
every question about it (driver, bands, nodata, CRS, resolution) or refuses the scene with the reason;
`SceneReader` then reads windows from any number of threads, one dataset handle per thread.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from pipeline.bands import choose_bands, offered_bands
from pipeline.card import ModelCard
from pipeline.errors import DamagedSceneError, SceneError, SettingsError, WorldError
from pipeline.grid import RasterGrid
from pipeline.handles import ThreadHandles
from pipeline.location import Location, resolve_location
from pipeline.resample import Taps, plan_taps, resample

LARGEST_BLOCK_BYTES = 2**31
"""A storage block is decoded whole; a header that declares a larger one is refused."""
MOST_SAMPLED_BLOCKS = 256
"""Blocks that make the fingerprint of a remote scene."""
MOST_RESAMPLED_PIXELS = 2**22
"""Stored pixels that are held at once while a window is resampled."""


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
            _crs_of(self.crs)
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
) -> Scene:
    """Read a raster's header and settle how it is read, or refuse it.

    Args:
        location: a path, or an `s3://`, `https://` or `http://` address.
        spec: corrections and permissions.
        card: the model that will see it; None takes every band that is not alpha.
        scene_id: name of the scene; the file's stem when None.

    Raises:
        SceneError: the scene cannot be processed correctly, or does not fit the model.
        DamagedSceneError: the header cannot be decoded.
        WorldError: a remote scene cannot be reached.
    """
    spec = spec or ReadingSpec()
    place = resolve_location(location)
    name = _folder_name(scene_id or place.stem)
    with place.environment(), _damage_told(place), _open(place, spec.drivers) as dataset:
        numbers = _choose(dataset, spec, card, place)
        _check_type(dataset, numbers, card, place)
        _check_size(dataset, spec, place)
        grid = _resolve_grid(_file_grid(dataset, spec, place), spec, card, place)
        alpha = _alpha_number(dataset, spec, numbers, place)
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
            nodata=tuple(_resolve_nodata(dataset, n, spec) for n in numbers.values()),
            nodata_when=spec.nodata_when,
            alpha_number=alpha,
            mask=_mask_kind(dataset, numbers.values()),
            size_bytes=place.size_bytes,
            modified_ns=place.modified_ns,
            fingerprint=_fingerprint(dataset) if place.is_remote else None,
        )


class SceneReader:
    """Reads windows of one scene; safe to use from many threads, each with its own handle."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._handles = ThreadHandles(lambda: rasterio.open(scene.location.gdal_path, driver=scene.driver))

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


def valid_pixels(
    pixels: NDArray[np.generic], nodata: Sequence[float | None], nodata_when: Literal["all_bands", "any_band"]
) -> NDArray[np.bool_]:
    """Which pixels hold real data, from their values alone.

    Args:
        pixels: `(bands, height, width)`.
        nodata: the nodata value of each band, or None.
        nodata_when: a pixel is nodata when all bands hold it, or when any does.

    Returns:
        bool `(height, width)`, True = real data; a NaN or infinite value in any band is never valid.
    """
    valid = np.ones(pixels.shape[1:], bool)
    if any(value is not None for value in nodata):
        hits = [_holds(band, value) for band, value in zip(pixels, nodata, strict=True) if value is not None]
        everywhere = len(hits) == len(nodata)
        if nodata_when == "any_band":
            valid = ~np.logical_or.reduce(hits)
        elif everywhere:
            valid = ~np.logical_and.reduce(hits)
    if pixels.dtype.kind == "f":
        valid &= np.isfinite(pixels).all(axis=0)
    return valid


def _holds(band: NDArray[np.generic], value: float) -> NDArray[np.bool_]:
    """Where a band equals its nodata value, compared in the band's own type."""
    if band.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(band == band.dtype.type(value))
    if not float(value).is_integer():
        return np.zeros(band.shape, bool)
    return np.asarray(band == int(value))


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


def _choose(
    dataset: rasterio.DatasetReader, spec: ReadingSpec, card: ModelCard | None, place: Location
) -> dict[str, int]:
    offered = offered_bands(
        dataset.descriptions,
        [interp.name for interp in dataset.colorinterp],
        explicit=spec.bands,
        use_alpha=spec.ignore_alpha,
    )
    too_high = {name: number for name, number in spec.bands.items() if number > dataset.count}
    if too_high:
        raise SceneError(f"{place}: reading.bands maps to {too_high}, but the file has {dataset.count} band(s)")
    try:
        return choose_bands(offered, card.bands if card else None, place=str(place))
    except SceneError as error:
        if spec.ignore_alpha or ColorInterp.alpha not in dataset.colorinterp:
            raise
        alpha = dataset.colorinterp.index(ColorInterp.alpha) + 1
        raise SceneError(
            f"{error}; band {alpha} is tagged alpha (transparency), and if that is wrong, "
            "set reading.ignore_alpha=true too"
        ) from error


def _check_type(
    dataset: rasterio.DatasetReader, numbers: Mapping[str, int], card: ModelCard | None, place: Location
) -> None:
    for name, number in numbers.items():
        dtype = dataset.dtypes[number - 1]
        if np.dtype(dtype).kind == "c" or "complex" in dtype:
            raise SceneError(
                f"{place}: band {name!r} holds complex numbers ({dtype}), which have no single brightness; "
                "write amplitude or intensity to a real-valued GeoTIFF first"
            )
        if card is not None and card.dtype is not None and dtype != card.dtype:
            raise SceneError(
                f"{place}: band {name!r} is {dtype}, but the model was trained on {card.dtype}; "
                "the brightness scales differ, so convert the scene or use a model for its type"
            )


def _check_size(dataset: rasterio.DatasetReader, spec: ReadingSpec, place: Location) -> None:
    pixels = dataset.height * dataset.width
    if pixels > spec.max_pixels:
        raise SceneError(
            f"{place}: its header declares {dataset.height} x {dataset.width} px, over reading.max_pixels "
            f"({spec.max_pixels:,}); raise that setting if the scene is really so large"
        )
    rows, cols = dataset.block_shapes[0]
    block_bytes = rows * cols * np.dtype(dataset.dtypes[0]).itemsize * dataset.count
    if block_bytes > LARGEST_BLOCK_BYTES:
        raise SceneError(
            f"{place}: stored in blocks of {rows} x {cols} px ({block_bytes / 2**30:.1f} GiB each), which cannot be "
            "read by windows; rewrite it tiled, e.g. gdal_translate -of COG"
        )


def _file_grid(dataset: rasterio.DatasetReader, spec: ReadingSpec, place: Location) -> RasterGrid:
    if not _has_transform(dataset, place):
        raise SceneError(f"{place}: {_why_no_transform(dataset)}")
    _check_sidecar(dataset, place)
    crs = _resolve_crs(dataset.crs, spec, place)
    try:
        return RasterGrid(crs=crs, transform=dataset.transform, height=dataset.height, width=dataset.width)
    except SceneError as error:
        raise SceneError(f"{place}: {error}; correct it with gdal_edit -a_ullr") from error


def _has_transform(dataset: rasterio.DatasetReader, place: Location) -> bool:
    """Whether the file has a geotransform; where there is none, GDAL gives one without an origin, and warns."""
    if dataset.transform == Affine.identity():
        return False
    if dataset.transform.c or dataset.transform.f:
        return True
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", NotGeoreferencedWarning)
        rasterio.open(place.gdal_path, driver=dataset.driver).close()
    return not told


def _why_no_transform(dataset: rasterio.DatasetReader) -> str:
    gcps, _ = dataset.gcps
    if gcps:
        return (
            f"placed on the ground only by {len(gcps)} control points (GCPs), with no geotransform; "
            "warp it first, e.g. gdalwarp -tps -t_srs EPSG:32633"
        )
    if dataset.rpcs is not None:
        return (
            "placed on the ground only by a camera model (RPC), with no geotransform; "
            "orthorectify it first, e.g. gdalwarp -rpc -t_srs EPSG:32633"
        )
    return (
        "has no geotransform, so its pixels have no place on the ground; georeference it first, e.g. gdal_edit -a_ullr"
    )


def _resolve_crs(own: CRS | None, spec: ReadingSpec, place: Location) -> CRS:
    """The scene's CRS; the settings' where it has none, or one that floats free of the Earth."""
    given = None if spec.crs is None else _crs_of(spec.crs)
    if own is None or not (own.is_projected or own.is_geographic):
        if given is None:
            lack = "no CRS" if own is None else f"a local CRS that is not tied to the Earth ({_short(own)})"
            raise SceneError(
                f"{place}: has a geotransform but {lack}; if you know its CRS, give it with --crs, "
                "e.g. --crs EPSG:32633"
            )
        return given
    if given is not None and own != given:
        raise SceneError(
            f"{place}: has its own CRS ({_short(own)}), which reading.crs = {spec.crs} contradicts; "
            "leave the setting out, or correct the file with gdal_edit -a_srs"
        )
    return own


def _short(crs: CRS | None) -> str:
    """A CRS in a message: its code, or the beginning of its definition."""
    if crs is None:
        return "no CRS"
    text = str(crs.to_string())
    return text if len(text) <= 40 else f"{text[:40]}..."


def _crs_of(text: str) -> CRS:
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise SettingsError(f"crs must be a CRS that PROJ knows, e.g. EPSG:32633, not {text!r}") from error
    if not (crs.is_projected or crs.is_geographic):
        raise SettingsError(f"crs must be tied to the Earth, e.g. EPSG:32633, not {text!r}")
    return crs


def _check_driver(name: str) -> None:
    with rasterio.Env() as env:
        known = env.drivers()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1)
        hint = f"; did you mean {next(k for k in known if k.lower() == close[0])}?" if close else ""
        raise SettingsError(f"drivers must name GDAL drivers of this build, not {name!r}{hint}")


def _check_sidecar(dataset: rasterio.DatasetReader, place: Location) -> None:
    """Refuse a scene whose .aux.xml contradicts the georeferencing inside the file."""
    if not any(name.endswith(".aux.xml") for name in dataset.files) or dataset.driver != "GTiff":
        return
    with rasterio.Env(GDAL_GEOREF_SOURCES="INTERNAL"), _open_quietly(place, "GTiff") as inner:
        own, outer = inner.transform, dataset.transform
        moved = own != Affine.identity() and not own.almost_equals(outer, precision=abs(own.a) * 1e-3)
        if moved or (inner.crs is not None and inner.crs != dataset.crs):
            raise SceneError(
                f"{place}: the georeferencing inside the file ({_short(inner.crs)}, {tuple(own)[:6]}) contradicts its "
                f".aux.xml sidecar ({_short(dataset.crs)}, {tuple(outer)[:6]}); remove whichever is wrong"
            )


def _fingerprint(dataset: rasterio.DatasetReader) -> str:
    """Digest of up to `MOST_SAMPLED_BLOCKS` blocks' places and lengths; a network tells us no time of change."""
    (down, across), (rows, cols) = dataset.block_shapes[0], dataset.shape
    per_row, count = -(-cols // across), -(-cols // across) * -(-rows // down)
    sampled = range(0, count, -(-count // MOST_SAMPLED_BLOCKS))
    names = [f"BLOCK_{what}_{k % per_row}_{k // per_row}" for k in sampled for what in ("OFFSET", "SIZE")]
    facts = [dataset.get_tag_item(name, "TIFF", bidx=1) for name in names]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _resolve_grid(grid: RasterGrid, spec: ReadingSpec, card: ModelCard | None, place: Location) -> RasterGrid:
    wanted = card.resolution_m if card else None
    if spec.resolution_m == "model":
        return grid.resampled(wanted) if wanted and not _close(grid.resolution_m, wanted, 0.01) else grid
    if spec.resolution_m != "native":
        grid = grid.resampled(spec.resolution_m)
    if wanted and not _close(grid.resolution_m, wanted, spec.resolution_tolerance):
        raise SceneError(
            f"{place}: its pixels are {grid.resolution_m:.3g} m on the ground, but the model was trained at "
            f"{wanted:.3g} m; set reading.resolution_m=model to resample while reading, or raise "
            f"reading.resolution_tolerance (now {spec.resolution_tolerance})"
        )
    return grid


def _close(value: float, wanted: float, tolerance: float) -> bool:
    return abs(value - wanted) <= tolerance * wanted


def _resolve_nodata(dataset: rasterio.DatasetReader, number: int, spec: ReadingSpec) -> float | None:
    if spec.nodata is not None:
        return spec.nodata
    value = dataset.nodatavals[number - 1]
    if spec.ignore_nodata or value is None or np.isnan(value):
        return None
    return float(value)


def _alpha_number(
    dataset: rasterio.DatasetReader, spec: ReadingSpec, numbers: Mapping[str, int], place: Location
) -> int | None:
    if spec.ignore_alpha or ColorInterp.alpha not in dataset.colorinterp:
        return None
    alpha: int = dataset.colorinterp.index(ColorInterp.alpha) + 1
    for name, number in numbers.items():
        if number == alpha:
            raise SceneError(
                f"{place}: band {number}, wanted as {name!r}, is tagged alpha (transparency); "
                "if the tag is wrong set reading.ignore_alpha=true"
            )
    return alpha


def _mask_kind(dataset: rasterio.DatasetReader, numbers: Iterable[int]) -> Literal["none", "dataset", "band"]:
    """The kind of a stored mask; masks that GDAL makes of alpha or nodata are decided from pixels."""
    flags = [dataset.mask_flag_enums[n - 1] for n in numbers]
    from_pixels = (MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha)
    if all(any(source in flag for source in from_pixels) for flag in flags):
        return "none"
    return "dataset" if all(MaskFlags.per_dataset in flag for flag in flags) else "band"


def _read_fault(scene: Scene, window: Window, error: Exception) -> DamagedSceneError | WorldError:
    where = f"rows {window.row_off}..{window.row_off + window.height - 1}, columns {window.col_off}.."
    where += str(window.col_off + window.width - 1)
    cause = str(error.__cause__ or error).strip().rstrip(".")
    if scene.location.is_remote or scene.location.has_vanished:
        return WorldError(f"{scene.location}: reading {where} failed: {cause}; check the network or disk and run again")
    return DamagedSceneError(
        f"{scene.location}: damaged at {where}: {cause}; fetch or write the file again, nothing of it was published"
    )
