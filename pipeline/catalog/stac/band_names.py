"""Band names of a STAC Item's assets: the common name where one band has the finest pixels, else other names.

Of several bands with one common name the finest keeps it, else the one of the preferred asset; the others are dropped
as copies of the same band. If neither decides, they are different bands and keep their own names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from pipeline.scene import canonical_name


@dataclass(frozen=True, kw_only=True)
class BandInfo:
    """A band as its asset describes it."""

    common: str | None = None
    own: str | None = None
    """Name by sensor or provider."""
    nodata: float | None = None
    """Stored value of nodata."""
    scale: float | None = None
    """Scale: value = stored * scale + offset."""
    offset: float | None = None
    pixel_sizes: tuple[float | None, ...] = (None, None, None)
    """Pixel size by transform, by raster extension and by gsd; None where unknown."""


@dataclass(frozen=True, kw_only=True)
class AssetInfo:
    """An asset that may hold bands of the scene."""

    key: str
    href: object
    """Its link, as written."""
    rank: int
    """Preference, lowest first: index of its driver among the allowed ones, or of its key in `catalog.assets`."""
    bands: tuple[BandInfo, ...]
    """In the order of the file; empty if the Item does not describe them."""

    @property
    def has_bands(self) -> bool:
        """Whether one of its bands has a name."""
        return any(band.common or band.own for band in self.bands)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A band of an asset; compared by identity."""

    asset: AssetInfo
    number: int
    """Index of the band, from 0."""

    @property
    def band(self) -> BandInfo:
        return self.asset.bands[self.number] if self.asset.bands else BandInfo()

    @property
    def numbered_key(self) -> str:
        return self.asset.key if len(self.asset.bands) <= 1 else f"{self.asset.key}_{self.number + 1}"


def name_bands(assets: Sequence[AssetInfo]) -> dict[str, tuple[str | None, ...]]:
    """Key of each asset that is used -> names of its bands, None where the file names them."""
    of_asset = {asset.key: [_Slot(asset, number) for number in range(len(asset.bands) or 1)] for asset in assets}
    slots = [slot for each in of_asset.values() for slot in each]
    names: dict[_Slot, str | None] = {}
    copies: set[_Slot] = set()
    for assign in (_by_common_name, _by_own_name):
        assigned = assign([slot for slot in slots if slot not in names and slot not in copies], _canonical(names))
        names |= {best: name for best, (name, _) in assigned.items()}
        copies |= {slot for _, others in assigned.values() for slot in others}
    taken = set(_canonical(names))
    for slot in slots:
        if slot not in names and slot not in copies:
            name = _by_key(slot, taken) if _needs_name(slot, alone=len(assets) == 1) else None
            names[slot] = name
            taken |= {canonical_name(name)} if name else set()
    return {
        key: tuple(names.get(slot, slot.numbered_key) for slot in own)
        for key, own in of_asset.items()
        if any(slot in names for slot in own)
    }


Assigned = dict[_Slot, tuple[str, Sequence[_Slot]]]
"""Band -> its name, and the copies of it."""


def _by_common_name(slots: Sequence[_Slot], taken: frozenset[str]) -> Assigned:
    groups = defaultdict(list)
    for slot in slots:
        if slot.band.common:
            groups[canonical_name(slot.band.common)].append(slot)
    return {
        best: (best.band.common or name, [slot for slot in same if slot is not best])
        for name, same in groups.items()
        if name not in taken and (best := _best(same)) is not None
    }


def _by_own_name(slots: Sequence[_Slot], taken: frozenset[str]) -> Assigned:
    """By own names of one band each; if it occurs in several files, these must share its common name."""
    groups = defaultdict(list)
    for slot in slots:
        if slot.band.own:
            groups[canonical_name(slot.band.own), canonical_name(slot.band.common or "")].append(slot)
    bands = Counter(name for name, _ in groups)
    return {
        best: (best.band.own or name, [slot for slot in same if slot is not best])
        for (name, common), same in groups.items()
        if name not in taken and bands[name] == 1 and (common or len(same) == 1) and (best := _best(same)) is not None
    }


def _by_key(slot: _Slot, taken: Set[str]) -> str:
    key = slot.numbered_key
    return key if canonical_name(key) not in taken else f"{key}_{slot.band.own or slot.band.common or slot.number + 1}"


def _needs_name(slot: _Slot, *, alone: bool) -> bool:
    """Whether the file cannot name the band: the Item names it, or it is the only band of one of several files."""
    band = slot.band
    return bool(band.common or band.own) or (len(slot.asset.bands) <= 1 and not alone)


def _best(slots: Sequence[_Slot]) -> _Slot | None:
    """The band with the finest pixels, by each measure that all the remaining ones have, then with the lowest rank."""
    measures: list[Mapping[_Slot, float | None]] = [
        {slot: slot.band.pixel_sizes[k] for slot in slots} for k in range(3)
    ]
    remaining = list(slots)
    for sizes in (*measures, {slot: float(slot.asset.rank) for slot in slots}):
        known = [size for slot in remaining if (size := sizes[slot]) is not None]
        if len(known) == len(remaining):
            remaining = [slot for slot in remaining if sizes[slot] == min(known)]
    return remaining[0] if len(remaining) == 1 else None


def _canonical(names: Mapping[_Slot, str | None]) -> frozenset[str]:
    return frozenset(canonical_name(name) for name in names.values() if name)
