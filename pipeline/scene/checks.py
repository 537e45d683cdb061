"""Header checks of a raster against settings and model, before a pixel is read. Opens nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from rasterio import DatasetReader
from rasterio.enums import ColorInterp

from pipeline.errors import SceneError
from pipeline.model import ModelCard
from pipeline.scene.bands import BandFile, catalog_values, choose_bands, offered_bands
from pipeline.storage import Location

if TYPE_CHECKING:
    from pipeline.scene.spec import ReadingSpec

MAX_BLOCK_BYTES = 2**31
"""A storage block is decoded whole; a header that declares a larger one is refused."""
MAX_SAMPLED_BLOCKS = 256
"""Largest number of blocks in the fingerprint of a remote scene."""


def find_bands(
    dataset: DatasetReader,
    spec: ReadingSpec,
    card: ModelCard | None,
    place: Location,
    listed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Name and 1-based number of each band that is read, in the model's order.

    Args:
        dataset: the open file.
        spec: corrections.
        card: the model; None takes every band that is not alpha.
        place: for messages.
        listed: names and numbers from a catalog; the settings take precedence.
    """
    explicit = {name: number for name, number in (listed or {}).items() if number not in spec.bands.values()}
    offered = offered_bands(
        dataset.descriptions,
        [interp.name for interp in dataset.colorinterp],
        explicit=explicit | dict(spec.bands),
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


def check_type(dataset: DatasetReader, numbers: Mapping[str, int], card: ModelCard | None, place: Location) -> None:
    """Refuse complex numbers, and a pixel type that is not the model's."""
    for name, number in numbers.items():
        dtype = dataset.dtypes[number - 1]
        if dtype.startswith("complex"):  # also complex_int16 of GDAL, which numpy does not have
            raise SceneError(
                f"{place}: band {name!r} holds complex numbers ({dtype}), which have no single brightness; "
                "write amplitude or intensity to a real-valued GeoTIFF first"
            )
        if card is not None and card.dtype is not None and dtype != card.dtype:
            raise SceneError(
                f"{place}: band {name!r} is {dtype}, but the model was trained on {card.dtype}; "
                "the brightness scales differ, so convert the scene or use a model for its type"
            )


def resolve_scaling(
    dataset: DatasetReader, numbers: Mapping[str, int], spec: ReadingSpec, listed: BandFile | None, place: Location
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of each band, from the catalog or else the file's tags.

    Raises:
        SceneError: one is no number, or a scale is 0, so that pixels would lose their values.
    """
    chosen = [*numbers.values()]
    if spec.ignore_scale:
        return (1.0,) * len(chosen), (0.0,) * len(chosen)
    scales, offsets = (
        tuple(float(own[n - 1] if value is None else value) for n, value in zip(chosen, values, strict=True))
        for own, values in (
            (dataset.scales, catalog_values(listed, "scales", chosen)),
            (dataset.offsets, catalog_values(listed, "offsets", chosen)),
        )
    )
    for band, scale, offset in zip(numbers, scales, offsets, strict=True):
        wrong = "scale" if scale == 0 or not math.isfinite(scale) else None if math.isfinite(offset) else "offset"
        if wrong is not None:
            value = scale if wrong == "scale" else offset
            raise SceneError(
                f"{place}: band {band!r} has the {wrong} {value:g}, and value = stored * scale + offset would mean "
                "nothing; correct the tag, or set reading.ignore_scale=true to take the stored values"
            )
    return scales, offsets


def check_size(dataset: DatasetReader, spec: ReadingSpec, place: Location) -> None:
    """Refuse implausible sizes, and blocks too large to be read by windows."""
    pixels = dataset.height * dataset.width
    if pixels > spec.max_pixels:
        raise SceneError(
            f"{place}: its header declares {dataset.height} x {dataset.width} px, over reading.max_pixels "
            f"({spec.max_pixels:,}); raise that setting if the scene is really so large"
        )
    rows, cols = dataset.block_shapes[0]
    block_bytes = rows * cols * np.dtype(dataset.dtypes[0]).itemsize * dataset.count
    if block_bytes > MAX_BLOCK_BYTES:
        raise SceneError(
            f"{place}: stored in blocks of {rows} x {cols} px ({block_bytes / 2**30:.1f} GiB each), which cannot be "
            "read by windows; rewrite it tiled, e.g. gdal_translate -of COG"
        )


def fingerprint(dataset: DatasetReader, version: str | None) -> str:
    """Digest of the version that a server reports, and of offsets and sizes of up to `MAX_SAMPLED_BLOCKS` blocks.

    Args:
        dataset: the open file.
        version: requested before opening, so that a file that is replaced in between gets another fingerprint later.
    """
    (down, across), (rows, cols) = dataset.block_shapes[0], dataset.shape
    per_row, count = -(-cols // across), -(-cols // across) * -(-rows // down)
    sampled = range(0, count, -(-count // MAX_SAMPLED_BLOCKS))
    names = [f"BLOCK_{what}_{k % per_row}_{k // per_row}" for k in sampled for what in ("OFFSET", "SIZE")]
    facts = [dataset.get_tag_item(name, "TIFF", bidx=1) for name in names]
    return hashlib.sha256(repr([version, *facts]).encode()).hexdigest()
