"""Which assets of a STAC Item are a scene's bands, and what each band is called.

An asset counts when a driver that may open scenes reads its kind and no role says that it is a picture, a mask or a
record. A band is called by its common name, which belongs to one asset: to the finest, else to the one whose driver
stands first. Where neither decides, nothing is guessed: each goes by its own name, or by its asset's key.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.band_file import BandFile
from pipeline.bands import canonical_name
from pipeline.catalog_links import Place, resolve_href
from pipeline.errors import SceneError

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


@dataclass(frozen=True, kw_only=True)
class _Band:
    """One band as its asset tells it."""

    common: str | None
    """Name in the vocabulary of common names."""
    own: str | None
    """Name that sensor or provider give it."""
    nodata: float | None
    """Stored value that means nodata."""
    scale: float | None
    """Scale: value = stored * scale + offset."""
    offset: float | None
    """Offset."""
    steps: tuple[float | None, ...]
    """Pixel size by its transform, by the raster extension and by gsd; None where not told."""


UNTOLD = _Band(common=None, own=None, nodata=None, scale=None, offset=None, steps=(None, None, None))
"""The band of an asset of which nothing is told."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """An asset that may hold bands of the scene."""

    key: str
    """Its key in the Item."""
    href: object
    """Its link, as it is written."""
    rank: int
    """Place of its driver among those that may open scenes; of a chosen asset, its place in the choice."""
    bands: tuple[_Band, ...]
    """In the order of the file; none where the Item tells nothing of them."""

    @property
    def is_told(self) -> bool:
        """Whether a band of it has a name."""
        return any(band.common or band.own for band in self.bands)


def find_files(item: Item, place: Place, *, drivers: Sequence[str], chosen: Sequence[str]) -> ItemFiles:
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
    told = found if chosen else [each for each in found if each.is_told] or found
    if not told:
        has = ", ".join(f"{key} ({asset.media_type or 'no type'})" for key, asset in item.assets.items()) or "none"
        raise SceneError(
            f"no asset is a raster that {', '.join(drivers)} may open; it has {has}. "
            "Name the right ones with catalog.assets, or their driver in reading.drivers"
        )
    return _found(told, place)


def unscaled(file: BandFile) -> BandFile:
    """The file without what is told of scales and offsets."""
    nothing = (None,) * len(file.names)
    return replace(file, scales=nothing, offsets=nothing)


def _chosen(item: Item, keys: Sequence[str]) -> list[_Candidate]:
    missing = [key for key in keys if key not in item.assets]
    if missing:
        raise SceneError(
            f"has no asset {', '.join(missing)}, which catalog.assets asks for; "
            f"it has {', '.join(item.assets) or 'none'}"
        )
    return [_candidate(item, key, rank) for rank, key in enumerate(keys)]


def _fitting(item: Item, drivers: Sequence[str]) -> Iterator[_Candidate]:
    for key, asset in item.assets.items():
        rank = _driver_rank(asset.media_type, asset.href, drivers)
        if rank is not None and not NO_BANDS & {key.lower(), *(str(role).lower() for role in asset.roles or ())}:
            yield _candidate(item, key, rank)


def _driver_rank(media_type: str | None, href: object, drivers: Sequence[str]) -> int | None:
    """Place of the first driver that reads a kind of file, None where none does or the kind is not told."""
    kind = str(media_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(urlsplit(str(href)).path).suffix.lower()
    for rank, driver in enumerate(drivers):
        types, suffixes = FORMATS.get(driver, ((), ()))
        if kind in types or (not kind and suffix in suffixes):
            return rank
    return None


def _candidate(item: Item, key: str, rank: int) -> _Candidate:
    asset = item.assets[key]
    said = {**item.properties, **asset.extra_fields}
    try:
        bands = _bands(asset.extra_fields, said)
    except SceneError as error:
        raise SceneError(f"asset {key}: {error}") from error
    return _Candidate(key=key, href=asset.href, rank=rank, bands=bands)


def _bands(asset: Facts, said: Facts) -> tuple[_Band, ...]:
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


def _band(band: Facts, said: Facts) -> _Band:
    scale = _number(_first((band, "raster:scale"), (band, "scale"), (said, "raster:scale")), "scale")
    if scale is not None and (not math.isfinite(scale) or scale == 0):
        raise SceneError(f"a band's scale is {scale:g}; correct the Item")
    offset = _number(_first((band, "raster:offset"), (band, "offset"), (said, "raster:offset")), "offset")
    if offset is not None and not math.isfinite(offset):
        raise SceneError(f"a band's offset is {offset:g}; correct the Item")
    return _Band(
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


def _found(candidates: Sequence[_Candidate], place: Place) -> ItemFiles:
    if len(candidates) == 1 and not candidates[0].bands:
        return ItemFiles(location=_location(candidates[0], place), files=())
    owners = _owners(candidates)
    own = Counter(canonical_name(band.own) for each in candidates for band in each.bands if band.own)
    taken = {name for name, owner in owners.items() if owner is not None} | {n for n, count in own.items() if count > 1}
    alone = len(candidates) == 1
    files = []
    for candidate in candidates:
        names = _names(candidate, owners, taken, alone=alone)
        if names is not None:
            files.append(_file(candidate, names, _location(candidate, place)))
    return ItemFiles(location=files[0].location, files=tuple(files))


def _location(candidate: _Candidate, place: Place) -> str:
    try:
        return resolve_href(candidate.href, place)
    except SceneError as error:
        raise SceneError(f"asset {candidate.key}: {error}") from error


def _owners(candidates: Sequence[_Candidate]) -> dict[str, tuple[str, int] | None]:
    """Common name -> asset and number of the band that has it; None where several have and nothing tells them apart."""
    holders: dict[str, list[tuple[_Candidate, int]]] = defaultdict(list)
    for candidate in candidates:
        for number, band in enumerate(candidate.bands):
            if band.common:
                holders[canonical_name(band.common)].append((candidate, number))
    return {name: _owner(held) for name, held in holders.items()}


def _owner(held: Sequence[tuple[_Candidate, int]]) -> tuple[str, int] | None:
    """The one with the finest pixels, by each measure that all that are left tell, then the one of lowest rank."""
    measures = [[candidate.bands[number].steps[k] for candidate, number in held] for k in range(3)]
    measures.append([float(candidate.rank) for candidate, _ in held])
    left = [*range(len(held))]
    for sizes in measures:
        told = [size for k in left if (size := sizes[k]) is not None]
        if len(told) == len(left):
            left = [k for k in left if sizes[k] == min(told)]
    candidate, number = held[left[0]]
    return (candidate.key, number) if len(left) == 1 else None


def _names(
    candidate: _Candidate, owners: Mapping[str, tuple[str, int] | None], taken: set[str], *, alone: bool
) -> list[str | None] | None:
    """What an asset's bands are called, None when all are those of better ones; own names are added to `taken`."""
    bands = candidate.bands or (UNTOLD,)
    owner_of = [owners.get(canonical_name(band.common)) if band.common else None for band in bands]
    if all(owner is not None and owner[0] != candidate.key for owner in owner_of):
        return None
    names: list[str | None] = []
    for number, (band, owner) in enumerate(zip(bands, owner_of, strict=True)):
        if owner == (candidate.key, number):
            names.append(band.common)
        elif band.common or band.own or (len(bands) == 1 and not alone):
            names.append(_free_name(band, candidate.key, number if len(bands) > 1 else None, taken))
        else:
            names.append(None)
    return names


def _file(candidate: _Candidate, names: Sequence[str | None], location: str) -> BandFile:
    bands = candidate.bands or (UNTOLD,)
    return BandFile(
        location=location,
        names=tuple(names),
        nodata=tuple(band.nodata for band in bands),
        scales=tuple(band.scale for band in bands),
        offsets=tuple(band.offset for band in bands),
        own_names=tuple(band.own for band in bands),
    )


def _free_name(band: _Band, key: str, number: int | None, taken: set[str]) -> str:
    """The band's own name, else its asset's key, else both, whichever no other band has."""
    numbered = key if number is None else f"{key}_{number + 1}"
    options = [name for name in (band.own, numbered) if name and canonical_name(name) not in taken]
    name = options[0] if options else f"{numbered}_{band.own or band.common}"
    taken.add(canonical_name(name))
    return name
