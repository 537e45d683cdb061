"""Header checks of a raster against settings and model, before a pixel is read. Opens nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from rasterio import DatasetReader
from rasterio.enums import Interleaving

from pipeline.errors import SceneError
from pipeline.model import ModelCard
from pipeline.scene.bands import BandFile, catalog_values, choose_bands, offered_bands
from pipeline.scene.validity import tagged_alpha
from pipeline.storage import Location

if TYPE_CHECKING:
    from pipeline.scene.spec import ReadingSpec

LARGE_ROW_BYTES = 2**28
"""A row of storage blocks across a file that is larger when decoded is read by parts, if its blocks are large too."""
LARGE_BLOCK_BYTES = 2**26
"""A block is large if it is larger when decoded, or higher than `WINDOW_ROWS`."""
MAX_DECODING_BYTES = 17 * 2**27
"""Memory for decoding one row of large blocks: blocks are decoded whole, and all of a row for each window across it.

With it a whole run stays under 4 GiB."""
WINDOW_ROWS = 512
"""Rows up to which whole blocks are read at once."""
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
        use_alpha=bool(spec.ignore_alpha),
    )
    too_high = {name: number for name, number in spec.bands.items() if number > dataset.count}
    if too_high:
        raise SceneError(f"{place}: reading.bands maps to {too_high}, but the file has {dataset.count} band(s)")
    try:
        return choose_bands(offered, card.bands if card else None, place=str(place))
    except SceneError as error:
        alpha = tagged_alpha(dataset, spec)
        if alpha is None:
            raise
        raise SceneError(
            f"{error}; band {alpha} is tagged alpha (transparency), and if that is wrong, "
            "set reading.ignore_alpha=true too"
        ) from error


def check_type(dataset: DatasetReader, numbers: Mapping[str, int], card: ModelCard | None, place: Location) -> None:
    """Refuse complex numbers, and a pixel type that is not the model's."""
    kinds = dataset.dtypes
    for name, number in numbers.items():
        dtype = kinds[number - 1]
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
    """Refuse implausible sizes."""
    pixels = dataset.height * dataset.width
    if pixels > spec.max_pixels:
        raise SceneError(
            f"{place}: its header declares {dataset.height} x {dataset.width} px, over reading.max_pixels "
            f"({spec.max_pixels:,}); raise that setting if the scene is really so large"
        )


def resident_bytes(dataset: DatasetReader, numbers: Collection[int], place: Location, *, masked: bool) -> int:
    """Bytes of decoded blocks to keep while windows across the file are read by parts of them; 0 for small blocks.

    Args:
        dataset: the open file.
        numbers: 1-based numbers of the bands that are read.
        place: for messages.
        masked: whether a mask is read with them, one byte for each pixel.

    Raises:
        SceneError: one row of blocks needs more memory than `MAX_DECODING_BYTES`.
    """
    rows, cols = dataset.block_shapes[0]
    kinds = dataset.dtypes
    itemsize = max(np.dtype(kinds[number - 1]).itemsize for number in numbers)
    # Blocks of interleaved pixels are decoded with all bands, and once more taken apart into bands.
    together = dataset.count > 1 and dataset.interleaving != Interleaving.band
    block_bytes = rows * cols * itemsize * (dataset.count if together else 1)
    mask_bytes = rows * cols if masked else 0
    row_bytes = -(-dataset.width // cols) * (block_bytes * (1 if together else len(numbers)) + mask_bytes)
    if row_bytes <= LARGE_ROW_BYTES or (rows <= WINDOW_ROWS and block_bytes <= LARGE_BLOCK_BYTES):
        return 0
    # A compressed block may be as large as its pixels.
    needed = row_bytes + block_bytes * (2 if together else 1)
    if needed > MAX_DECODING_BYTES:
        raise SceneError(
            f"{place}: stored in blocks of {rows} x {cols} px ({block_bytes / 2**30:.1f} GiB each); decoding one row "
            f"of them needs {needed / 2**30:.1f} GiB of memory, over the limit of {MAX_DECODING_BYTES / 2**30:.1f} "
            "GiB; rewrite it tiled, e.g. gdal_translate -of COG"
        )
    return int(row_bytes)


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
