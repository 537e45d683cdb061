"""Which assets of a STAC Item are a scene's bands, and what is told of each band.

An asset counts when a driver that may open scenes reads its kind and no role says that it is a picture, a mask or a
record.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.catalog.stac.band_names import AssetInfo, BandInfo, name_bands
from pipeline.catalog.stac.links import Place, resolve_href
from pipeline.errors import SceneError
from pipeline.scene import BandFile

if TYPE_CHECKING:
    from pystac import Item

Facts = Mapping[str, object]

FORMATS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "GTiff": (("image/tiff", "image/geotiff", "image/vnd.stac.geotiff"), (".tif", ".tiff", ".gtiff")),
    "JP2OpenJPEG": (("image/jp2",), (".jp2",)),
    "JP2KAK": (("image/jp2",), (".jp2",)),
    "JPEG": (("image/jpeg", "image/jpg"), (".jpg", ".jpeg")),
    "PNG": (("image/png",), (".png",)),
}
"""GDAL driver -> media types and suffixes of what it reads."""
NO_BANDS = frozenset(
    [
        *("thumbnail", "overview", "visual", "preview", "graphic", "metadata", "iso-19115"),
        *("data-mask", "cloud", "cloud-shadow", "snow-ice", "land-water", "water-mask", "saturation"),
    ]
)
"""Roles, and a few keys by which pictures go, of assets that hold no band that was measured."""


@dataclass(frozen=True, kw_only=True)
class ItemFiles:
    """The rasters of an Item's scene."""

    location: str
    """Path or address of the first."""
    files: tuple[BandFile, ...]
    """All of them with their bands; none where there is one and the Item tells nothing of its bands."""


def find_band_files(item: Item, place: Place, *, drivers: Sequence[str], chosen: Sequence[str]) -> ItemFiles:
    """The files that hold bands of an Item's scene, in the order of its assets.

    Where assets tell their bands, those that do not are left out. Where none does, each has one band, called by the
    asset's key; but a file that is alone tells itself what is in it.

    Args:
        item: the Item.
        place: where it lies.
        drivers: GDAL drivers that may open scenes, the preferred first.
        chosen: keys of the assets that count, the preferred first; empty: the rule above finds them.

    Raises:
        SceneError: no asset counts, a chosen one is missing, a link leads astray, or a fact about a band is none.
    """
    found = _chosen(item, chosen) if chosen else [*_fitting(item, drivers)]
    told = found if chosen else [each for each in found if each.has_bands] or found
    if not told:
        kinds = Counter(str(asset.media_type or "without a type") for asset in item.assets.values())
        has = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        raise SceneError(
            f"no asset is a raster that {', '.join(drivers)} may open; it has {has}. "
            "Name the right ones with catalog.assets, or their driver in reading.drivers"
        )
    return _found(told, place)


def unscaled(file: BandFile) -> BandFile:
    """The file without what is told of scales and offsets."""
    nothing = (None,) * len(file.names)
    return replace(file, scales=nothing, offsets=nothing)


def _chosen(item: Item, keys: Sequence[str]) -> list[AssetInfo]:
    missing = [key for key in keys if key not in item.assets]
    if missing:
        raise SceneError(
            f"has no asset {', '.join(missing)}, which catalog.assets asks for; "
            f"it has {', '.join(item.assets) or 'none'}"
        )
    return [_told_asset(item, key, rank) for rank, key in enumerate(keys)]


def _fitting(item: Item, drivers: Sequence[str]) -> Iterator[AssetInfo]:
    for key, asset in item.assets.items():
        rank = _driver_rank(asset.media_type, asset.href, drivers)
        if rank is not None and not NO_BANDS & {key.lower(), *(str(role).lower() for role in asset.roles or ())}:
            yield _told_asset(item, key, rank)


def _driver_rank(media_type: str | None, href: object, drivers: Sequence[str]) -> int | None:
    """Place of the first driver that reads a kind of file, None where none does or the kind is not told."""
    kind = str(media_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(urlsplit(str(href)).path).suffix.lower()
    for rank, driver in enumerate(drivers):
        types, suffixes = FORMATS.get(driver, ((), ()))
        if kind in types or (not kind and suffix in suffixes):
            return rank
    return None


def _told_asset(item: Item, key: str, rank: int) -> AssetInfo:
    asset = item.assets[key]
    said = {**item.properties, **asset.extra_fields}
    try:
        bands = _bands(asset.extra_fields, said)
    except SceneError as error:
        raise SceneError(f"asset {key}: {error}") from error
    return AssetInfo(key=key, href=asset.href, rank=rank, bands=bands)


def _bands(asset: Facts, said: Facts) -> tuple[BandInfo, ...]:
    """The bands of an asset: `bands` of STAC 1.1, or `eo:bands` and `raster:bands` of before, or the asset as one."""
    lists = [_records(asset, name) for name in ("raster:bands", "eo:bands", "bands")]
    lengths = {len(records) for records in lists if records}
    if len(lengths) > 1:
        raise SceneError(f"its lists of bands have {' and '.join(map(str, sorted(lengths)))} entries; correct the Item")
    count = max(lengths, default=0)
    if not count:
        return (_band({}, said),) if _text(asset, "eo:common_name") else ()
    merged = [{key: value for records in lists if records for key, value in records[k].items()} for k in range(count)]
    return tuple(_band(band, said if count == 1 else {**said, "eo:common_name": None}) for band in merged)


def _records(asset: Facts, name: str) -> Sequence[Facts]:
    value = asset.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise SceneError(f"its {name} is no list of bands; correct the Item")
    return value


def _band(band: Facts, said: Facts) -> BandInfo:
    scale = _number(_first((band, "raster:scale"), (band, "scale"), (said, "raster:scale")), "scale")
    if scale is not None and (not math.isfinite(scale) or scale == 0):
        raise SceneError(f"a band's scale is {scale:g}; correct the Item")
    offset = _number(_first((band, "raster:offset"), (band, "offset"), (said, "raster:offset")), "offset")
    if offset is not None and not math.isfinite(offset):
        raise SceneError(f"a band's offset is {offset:g}; correct the Item")
    return BandInfo(
        common=_text(band, "eo:common_name") or _text(band, "common_name") or _text(said, "eo:common_name"),
        own=_text(band, "name") or _text(band, "description"),
        nodata=_number(_first((band, "nodata"), (said, "nodata")), "nodata"),
        scale=scale,
        offset=offset,
        steps=(
            _step(said.get("proj:transform")),
            _size(_first((band, "raster:spatial_resolution"), (band, "spatial_resolution"))),
            _size(_first((band, "gsd"), (said, "gsd"))),
        ),
    )


def _first(*places: tuple[Facts, str]) -> object:
    return next((facts[key] for facts, key in places if facts.get(key) is not None), None)


def _text(facts: Facts, key: str) -> str | None:
    value = facts.get(key)
    return value.strip() if isinstance(value, str) and value.strip() and value.isprintable() else None


def _number(value: object, what: str) -> float | None:
    """A number, or one of the words `nan`, `inf` and `-inf`, which JSON has no numbers for."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    raise SceneError(f"a band's {what} is {value!r}, which is no number; correct the Item")


def _size(value: object) -> float | None:
    """A pixel size, None where it is not told or none."""
    is_size = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return float(value) if is_size else None  # type: ignore[arg-type]


def _step(transform: object) -> float | None:
    """Pixel size by `[a, b, c, d, e, f, ...]`: the root of the area of a pixel."""
    if not isinstance(transform, list) or len(transform) < 6:
        return None
    sizes = [value for value in transform[:6] if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(sizes) < 6:
        return None
    a, b, _, d, e, _ = sizes
    return _size(math.sqrt(abs(a * e - b * d)))


def _found(assets: Sequence[AssetInfo], place: Place) -> ItemFiles:
    if len(assets) == 1 and not assets[0].bands:
        return ItemFiles(location=_location(assets[0], place), files=())
    names = name_bands(assets)
    files = [_file(asset, names[asset.key], _location(asset, place)) for asset in assets if asset.key in names]
    return ItemFiles(location=files[0].location, files=tuple(files))


def _location(asset: AssetInfo, place: Place) -> str:
    try:
        return resolve_href(asset.href, place)
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
