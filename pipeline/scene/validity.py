"""Pixel validity: nodata values, alpha bands and masks, and non-finite pixels. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio import DatasetReader
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import SceneError
from pipeline.storage import Location

if TYPE_CHECKING:
    from pipeline.scene.spec import ReadingSpec

NodataWhen = Literal["all_bands", "any_band"]
"""Whether all bands or any band must hold nodata for a pixel to be nodata."""


MaskKind = Literal["none", "dataset", "band"]
"""Whether an internal mask or a `.msk` sidecar decides, for all bands at once or for each."""
EXACT_FLOAT = 2.0**53
"""Below this magnitude a float holds every integer; rasterio gives nodata values as floats."""


def resolve_nodata(
    dataset: DatasetReader, numbers: Sequence[int], spec: ReadingSpec, listed: Sequence[float | None]
) -> tuple[tuple[float | None, ...], MaskKind]:
    """The nodata value of each band, and the kind of the mask that is read with the pixels.

    Where a tag of 64-bit integers is too large for a float, GDAL's own mask, which is exact, takes its place.

    Args:
        dataset: the open file.
        numbers: 1-based numbers of the bands.
        spec: corrections; they take precedence.
        listed: the catalog's values, which come next.
    """
    tags = dataset.nodatavals  # read once: it asks GDAL for every band, of which a header may claim 65,535
    values = tuple(_nodata_of(tags[n - 1], spec, value) for n, value in zip(numbers, listed, strict=True))
    from_tags = spec.nodata is None and not spec.ignore_nodata and all(value is None for value in listed)
    if from_tags and _any_inexact(dataset, numbers):
        return (None,) * len(numbers), "band"
    return values, resolve_mask(dataset, numbers)


def _nodata_of(tag: float | None, spec: ReadingSpec, listed: float | None) -> float | None:
    """The nodata value of a band: the settings', the catalog's (`listed`), or the file's tag. NaN needs no naming."""
    if spec.nodata is not None:
        return spec.nodata
    value = tag if listed is None else listed
    if spec.ignore_nodata or value is None or np.isnan(value):
        return None
    return float(value)


ALPHA_WINDOW = 256
"""Side of the windows of an alpha band whose values are looked at, px."""
ALPHA_CELL = 16
"""Partial transparency is an edge within one to two of these of a transparent pixel, px: a block of JPEG."""
MAX_STRAY_SHARE = 0.01
"""Share of the pixels that may be partially transparent elsewhere in a mask. Near infrared has 4 % and more, however
saturated; masks with soft edges or of JPEG have none."""


def tagged_alpha(dataset: DatasetReader, spec: ReadingSpec) -> int | None:
    """The number of the band that is tagged alpha, unless the settings take it for data."""
    if spec.ignore_alpha or ColorInterp.alpha not in dataset.colorinterp:
        return None
    return int(dataset.colorinterp.index(ColorInterp.alpha)) + 1


def resolve_alpha(dataset: DatasetReader, spec: ReadingSpec, numbers: Mapping[str, int], place: Location) -> int | None:
    """The number of the alpha band, whose 0 is nodata; None where there is none, or the settings take it for data.

    Raises:
        SceneError: the model wants this band, or its values are no mask and the settings do not say what it is.
    """
    alpha = tagged_alpha(dataset, spec)
    if alpha is None:
        return None
    for name, number in numbers.items():
        if number == alpha:
            raise SceneError(
                f"{place}: band {number}, wanted as {name!r}, is tagged alpha (transparency); "
                "if the tag is wrong set reading.ignore_alpha=true"
            )
    if spec.ignore_alpha is None:
        share = stray_share([*_sample_windows(dataset, alpha)])
        if share > MAX_STRAY_SHARE:
            raise SceneError(
                f"{place}: band {alpha} is tagged alpha (transparency), but {share:.0%} of its pixels are partially "
                "transparent away from any transparent one, so it is hardly a mask; near infrared is often tagged so. "
                "If it is data, set reading.ignore_alpha=true; if it is a mask, reading.ignore_alpha=false"
            )
    return alpha


def stray_share(windows: Sequence[NDArray[np.generic]]) -> float:
    """Share of the pixels above 0 of an alpha band that are partially transparent, and not near a transparent pixel.

    Args:
        windows: `(height, width)` values of the band; their largest is opaque.
    """
    opaque = max((window.max() for window in windows), default=0)
    seen = stray = 0
    for alpha in windows:
        seen += int(np.count_nonzero(alpha))
        stray += int(np.count_nonzero((alpha != 0) & (alpha != opaque) & ~_near(alpha == 0)))
    return stray / max(1, seen)


def _near(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a cell of `ALPHA_CELL` px or one of its eight neighbours holds True."""
    (height, width), side = plane.shape, ALPHA_CELL
    rows, cols = -(-height // side), -(-width // side)
    cells = np.pad(plane, ((0, rows * side - height), (0, cols * side - width)))
    holds = np.pad(cells.reshape(rows, side, cols, side).any(axis=(1, 3)), 1)
    near = np.logical_or.reduce([holds[i : i + rows, j : j + cols] for i in range(3) for j in range(3)])
    return np.asarray(near.repeat(side, axis=0).repeat(side, axis=1)[:height, :width])


def _sample_windows(dataset: DatasetReader, number: int) -> Iterator[NDArray[np.generic]]:
    """Windows of a band at the ends and in the middle of rows and columns; only one row where blocks are high."""
    height, width = dataset.shape
    tall = dataset.block_shapes[0][0] > 4 * ALPHA_WINDOW
    tops, lefts = ({max(0, (length - ALPHA_WINDOW) * k // 2) for k in range(3)} for length in (height, width))
    for top in [max(0, height - ALPHA_WINDOW) // 2] if tall else sorted(tops):
        for left in sorted(lefts):
            window = Window(left, top, min(ALPHA_WINDOW, width), min(ALPHA_WINDOW, height))
            with suppress(RasterioError, CPLE_BaseError):  # damage is reported where the pixels are read
                yield dataset.read(number, window=window)


def _any_inexact(dataset: DatasetReader, numbers: Iterable[int]) -> bool:
    """Whether GDAL masks a band of 64-bit integers by a nodata value that a float may not hold."""
    kinds, tags, flags = dataset.dtypes, dataset.nodatavals, dataset.mask_flag_enums
    return any(
        kinds[n - 1] in ("int64", "uint64")
        and MaskFlags.nodata in flags[n - 1]
        and ((value := tags[n - 1]) is None or abs(value) >= EXACT_FLOAT)
        for n in numbers
    )


def resolve_mask(dataset: DatasetReader, numbers: Iterable[int]) -> MaskKind:
    """The kind of a stored mask; masks that GDAL makes of alpha or nodata are decided from pixels."""
    known = dataset.mask_flag_enums
    flags = [known[n - 1] for n in numbers]
    from_pixels = (MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha)
    if all(any(source in flag for source in from_pixels) for flag in flags):
        return "none"
    return "dataset" if all(MaskFlags.per_dataset in flag for flag in flags) else "band"


def present_pixels(pixels: NDArray[np.generic], nodata: Sequence[float | None], when: NodataWhen) -> NDArray[np.bool_]:
    """Where pixels are not nodata by their nodata values.

    Args:
        pixels: `(bands, height, width)`.
        nodata: the nodata value of each band, or None.
        when: a pixel is nodata when all bands hold it, or when any does.

    Returns:
        bool `(height, width)`; real data is present and `finite_pixels` too.
    """
    named = [(band, value) for band, value in zip(pixels, nodata, strict=True) if value is not None]
    present = np.ones(pixels.shape[1:], bool)
    if when == "any_band":
        for band, value in named:
            if _may_hold(band, value):
                present &= ~_holds(band, value)
    elif named and len(named) == len(nodata) and all(_may_hold(band, value) for band, value in named):
        present = ~np.logical_and.reduce([_holds(band, value) for band, value in named])
    return present


def finite_pixels(pixels: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Where all bands of `(bands, height, width)` pixels are finite numbers; None where that is everywhere."""
    if pixels.dtype.kind != "f" or (np.isfinite(pixels.min()) and np.isfinite(pixels.max())):
        return None
    return np.asarray(np.isfinite(pixels).all(axis=0))


def combine_present(planes: Sequence[NDArray[np.bool_]], when: NodataWhen) -> NDArray[np.bool_]:
    """Where data is present, from the planes of parts of the bands: in at least one part, or in all."""
    if len(planes) == 1:
        return planes[0]
    return np.asarray((np.logical_or if when == "all_bands" else np.logical_and).reduce(planes))


def combine_finite(planes: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    """Where every part of the bands is finite; None where that is everywhere."""
    known = [plane for plane in planes if plane is not None]
    return np.asarray(np.logical_and.reduce(known)) if known else None


def _may_hold(band: NDArray[np.generic], value: float) -> bool:
    """False where the extremes rule out that a pixel holds the value; cheaper than comparing each."""
    with np.errstate(over="ignore"):
        return not (band.min() > value or band.max() < value)


def _holds(band: NDArray[np.generic], value: float) -> NDArray[np.bool_]:
    """Where a band equals its nodata value, compared in the band's own type."""
    if band.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(band == band.dtype.type(value))
    if not float(value).is_integer():
        return np.zeros(band.shape, bool)
    return np.asarray(band == int(value))
