"""STAC assets that hold a scene's bands, and the metadata of each band.

An asset counts if an allowed driver reads its format and no role marks it as a picture, a mask or metadata.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.catalog.stac.band_names import AssetInfo, BandInfo, name_bands
from pipeline.catalog.stac.bounds import check_count
from pipeline.catalog.stac.links import DocumentLocation, resolve_href
from pipeline.errors import SceneError
from pipeline.scene import BandFile

if TYPE_CHECKING:
    from pystac import Item

Fields = Mapping[str, object]

FORMATS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "GTiff": (("image/tiff", "image/geotiff", "image/vnd.stac.geotiff"), (".tif", ".tiff", ".gtiff")),
    "JP2OpenJPEG": (("image/jp2",), (".jp2",)),
    "JP2KAK": (("image/jp2",), (".jp2",)),
    "JPEG": (("image/jpeg", "image/jpg"), (".jpg", ".jpeg")),
    "PNG": (("image/png",), (".png",)),
}
"""GDAL driver -> media types and suffixes that it reads."""
NON_BAND_ROLES = frozenset(
    [
        *("thumbnail", "overview", "visual", "preview", "graphic", "metadata", "iso-19115"),
        *("data-mask", "cloud", "cloud-shadow", "snow-ice", "land-water", "water-mask", "saturation"),
    ]
)
"""Roles, and usual keys of pictures, of assets without measured bands."""


@dataclass(frozen=True, kw_only=True)
class BandFiles:
    """The raster files of an Item's scene."""

    location: str
    """Path or address of the first."""
    files: tuple[BandFile, ...]
    """All files with their bands; empty for a single file whose bands the Item does not describe."""


def find_band_files(
    item: Item, document: DocumentLocation, *, drivers: Sequence[str], keys: Sequence[str]
) -> BandFiles:
    """The files that hold bands of an Item's scene, in the order of its assets; `document` contains the Item.

    If some assets describe their bands, the others are left out. If none does, each asset has one band, named by its
    key; the bands of a single file are named by the file. SceneError if there are none, or the Item is wrong.
    `drivers` are the allowed GDAL drivers, and `keys` the assets to use, the preferred first; no keys: the rule above.
    """
    check_count(item.assets, "assets")
    candidates = _by_keys(item, keys) if keys else [*_by_format(item, drivers)]
    check_count(sum(len(asset.bands) for asset in candidates), "bands")
    assets = candidates if keys else [asset for asset in candidates if asset.has_bands] or candidates
    if not assets:
        kinds = Counter(str(asset.media_type or "without a type") for asset in item.assets.values())
        has = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        raise SceneError(
            f"no asset is a raster that {', '.join(drivers)} may open; it has {has}. "
            "Name the right ones with catalog.assets, or their driver in reading.drivers"
        )
    return _band_files(assets, document)


def without_scaling(file: BandFile) -> BandFile:
    """The file without scales and offsets."""
    unknown = (None,) * len(file.names)
    return replace(file, scales=unknown, offsets=unknown)


def _by_keys(item: Item, keys: Sequence[str]) -> list[AssetInfo]:
    missing = [key for key in keys if key not in item.assets]
    if missing:
        raise SceneError(
            f"has no asset {', '.join(missing)}, which catalog.assets names; it has {', '.join(item.assets) or 'none'}"
        )
    return [_asset_info(item, key, rank) for rank, key in enumerate(keys)]


def _by_format(item: Item, drivers: Sequence[str]) -> Iterator[AssetInfo]:
    for key, asset in item.assets.items():
        rank = _driver_rank(asset.media_type, asset.href, drivers)
        if rank is not None and not NON_BAND_ROLES & {key.lower(), *(str(role).lower() for role in asset.roles or ())}:
            yield _asset_info(item, key, rank)


def _driver_rank(media_type: str | None, href: object, drivers: Sequence[str]) -> int | None:
    """Index of the first driver that reads a file, by media type, else by suffix; None if none does."""
    kind = str(media_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(urlsplit(str(href)).path).suffix.lower()
    for rank, driver in enumerate(drivers):
        types, suffixes = FORMATS.get(driver, ((), ()))
        if kind in types or (not kind and suffix in suffixes):
            return rank
    return None


def _asset_info(item: Item, key: str, rank: int) -> AssetInfo:
    asset = item.assets[key]
    defaults = ChainMap(asset.extra_fields, item.properties)
    try:
        bands = _bands(asset.extra_fields, defaults)
    except SceneError as error:
        raise SceneError(f"asset {key}: {error}") from error
    return AssetInfo(key=key, href=asset.href, rank=rank, bands=bands)


def _bands(asset: Fields, defaults: ChainMap[str, Any]) -> tuple[BandInfo, ...]:
    """The bands of an asset: `bands` of STAC 1.1, else `eo:bands` and `raster:bands`, else the asset as one band."""
    lists = [_records(asset, name) for name in ("raster:bands", "eo:bands", "bands")]
    lengths = {len(records) for records in lists if records}
    if len(lengths) > 1:
        raise SceneError(f"its lists of bands have {' and '.join(map(str, sorted(lengths)))} entries; correct the Item")
    count = max(lengths, default=0)
    if not count:
        return (_band({}, defaults),) if _text(asset, "eo:common_name") else ()
    check_count(count, "bands in one asset")
    merged = [{key: value for records in lists if records for key, value in records[k].items()} for k in range(count)]
    shared = defaults if count == 1 else defaults.new_child({"eo:common_name": None})
    return tuple(_band(band, shared) for band in merged)


def _records(asset: Fields, name: str) -> Sequence[Fields]:
    value = asset.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise SceneError(f"its {name} is not a list of bands; correct the Item")
    return value


def _band(band: Fields, defaults: Fields) -> BandInfo:
    scale = _number(_first((band, "raster:scale"), (band, "scale"), (defaults, "raster:scale")), "scale")
    if scale is not None and (not math.isfinite(scale) or scale == 0):
        raise SceneError(f"a band's scale is {scale:g}; correct the Item")
    offset = _number(_first((band, "raster:offset"), (band, "offset"), (defaults, "raster:offset")), "offset")
    if offset is not None and not math.isfinite(offset):
        raise SceneError(f"a band's offset is {offset:g}; correct the Item")
    return BandInfo(
        common=_text(band, "eo:common_name") or _text(band, "common_name") or _text(defaults, "eo:common_name"),
        own=_text(band, "name") or _text(band, "description"),
        nodata=_number(_first((band, "nodata"), (defaults, "nodata")), "nodata"),
        scale=scale,
        offset=offset,
        pixel_sizes=(
            _pixel_size(defaults.get("proj:transform")),
            _size(_first((band, "raster:spatial_resolution"), (band, "spatial_resolution"))),
            _size(_first((band, "gsd"), (defaults, "gsd"))),
        ),
    )


def _first(*sources: tuple[Fields, str]) -> object:
    return next((fields[key] for fields, key in sources if fields.get(key) is not None), None)


def _text(fields: Fields, key: str) -> str | None:
    value = fields.get(key)
    return value.strip() if isinstance(value, str) and value.strip() and value.isprintable() else None


def _number(value: object, name: str) -> float | None:
    """A number, or one of the words `nan`, `inf` and `-inf`, which JSON cannot write as numbers."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    raise SceneError(f"a band's {name} is {value!r}, which is not a number; correct the Item")


def _size(value: object) -> float | None:
    """A pixel size, None if it is missing or not positive."""
    is_size = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if is_size else None  # type: ignore[arg-type]


def _pixel_size(transform: object) -> float | None:
    """Pixel size of the transform `[a, b, c, d, e, f, ...]`: the square root of a pixel's area."""
    if not isinstance(transform, list) or len(transform) < 6:
        return None
    sizes = [value for value in transform[:6] if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(sizes) < 6:
        return None
    a, b, _, d, e, _ = sizes
    return _size(math.sqrt(abs(a * e - b * d)))


def _band_files(assets: Sequence[AssetInfo], document: DocumentLocation) -> BandFiles:
    if len(assets) == 1 and not assets[0].bands:
        return BandFiles(location=_location(assets[0], document), files=())
    names = name_bands(assets)
    files = [_file(asset, names[asset.key], _location(asset, document)) for asset in assets if asset.key in names]
    return BandFiles(location=files[0].location, files=tuple(files))


def _location(asset: AssetInfo, document: DocumentLocation) -> str:
    try:
        return resolve_href(asset.href, document)
    except SceneError as error:
        raise SceneError(f"asset {asset.key}: {error}") from error


def _file(asset: AssetInfo, names: tuple[str | None, ...], location: str) -> BandFile:
    bands = asset.bands or (BandInfo(),)
    return BandFile(
        location=location,
        names=names,
        nodata=tuple(band.nodata for band in bands),
        scales=tuple(band.scale for band in bands),
        offsets=tuple(band.offset for band in bands),
        own_names=tuple(band.own for band in bands),
    )
