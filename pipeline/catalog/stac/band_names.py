"""What the bands of an Item's assets are called: by common name where one asset has the best, else by other names.

Of several bands of one common name the finest is called so, else the one whose asset is preferred, and the others are
left out: they are the same band again. Where neither decides, they are different bands, and go by their own names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.scene import canonical_name


@dataclass(frozen=True, kw_only=True)
class BandInfo:
    """One band as its asset tells it."""

    common: str | None = None
    """Name in the vocabulary of common names."""
    own: str | None = None
    """Name that sensor or provider give it."""
    nodata: float | None = None
    """Stored value that means nodata."""
    scale: float | None = None
    """Scale: value = stored * scale + offset."""
    offset: float | None = None
    """Offset."""
    steps: tuple[float | None, ...] = (None, None, None)
    """Pixel size by its transform, by the raster extension and by gsd; None where not told."""


@dataclass(frozen=True, kw_only=True)
class AssetInfo:
    """An asset that may hold bands of the scene."""

    key: str
    """Its key in the Item."""
    href: object
    """Its link, as it is written."""
    rank: int
    """Place of its driver among those that may open scenes; of a chosen asset, its place in the choice."""
    bands: tuple[BandInfo, ...]
    """In the order of the file; none where the Item tells nothing of them."""

    @property
    def has_bands(self) -> bool:
        """Whether a band of it has a name."""
        return any(band.common or band.own for band in self.bands)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A band in its asset; equal to none but itself."""

    asset: AssetInfo
    """The asset."""
    number: int
    """Which of its bands, from 0."""

    @property
    def band(self) -> BandInfo:
        return self.asset.bands[self.number] if self.asset.bands else BandInfo()

    @property
    def numbered_key(self) -> str:
        return self.asset.key if len(self.asset.bands) <= 1 else f"{self.asset.key}_{self.number + 1}"


def name_bands(assets: Sequence[AssetInfo]) -> dict[str, tuple[str | None, ...]]:
    """Key of each asset that is not left out -> what its bands are called, None where its file says it."""
    slots = [_Slot(asset, number) for asset in assets for number in range(len(asset.bands) or 1)]
    names: dict[_Slot, str | None] = {}
    left_out: set[_Slot] = set()
    for pick in (_by_common_name, _by_own_name):
        picked = pick([slot for slot in slots if slot not in names and slot not in left_out], _forms(names))
        names |= {best: name for best, (name, _) in picked.items()}
        left_out |= {slot for _, others in picked.values() for slot in others}
    for slot in slots:
        if slot not in names and slot not in left_out:
            names[slot] = _by_key(slot, _forms(names)) if _needs_name(slot, alone=len(assets) == 1) else None
    return {
        asset.key: tuple(names.get(slot, slot.numbered_key) for slot in slots if slot.asset is asset)
        for asset in assets
        if any(slot in names for slot in slots if slot.asset is asset)
    }


Picked = dict[_Slot, tuple[str, Sequence[_Slot]]]
"""Band -> its name, and those that are the same band again."""


def _by_common_name(slots: Sequence[_Slot], taken: frozenset[str]) -> Picked:
    held = defaultdict(list)
    for slot in slots:
        if slot.band.common:
            held[canonical_name(slot.band.common)].append(slot)
    return {
        best: (best.band.common or form, [slot for slot in same if slot is not best])
        for form, same in held.items()
        if form not in taken and (best := _best(same)) is not None
    }


def _by_own_name(slots: Sequence[_Slot], taken: frozenset[str]) -> Picked:
    """By names that one band has, in one file or in several; those then share its common name too."""
    held = defaultdict(list)
    for slot in slots:
        if slot.band.own:
            held[canonical_name(slot.band.own), canonical_name(slot.band.common or "")].append(slot)
    bands = Counter(form for form, _ in held)
    return {
        best: (best.band.own or form, [slot for slot in same if slot is not best])
        for (form, common), same in held.items()
        if form not in taken and bands[form] == 1 and (common or len(same) == 1) and (best := _best(same)) is not None
    }


def _by_key(slot: _Slot, taken: frozenset[str]) -> str:
    key = slot.numbered_key
    return key if canonical_name(key) not in taken else f"{key}_{slot.band.own or slot.band.common or slot.number + 1}"


def _needs_name(slot: _Slot, *, alone: bool) -> bool:
    """A band that nobody names is named by its file, but for the only band of one of several files."""
    band = slot.band
    return bool(band.common or band.own) or (len(slot.asset.bands) <= 1 and not alone)


def _best(slots: Sequence[_Slot]) -> _Slot | None:
    """The one with the finest pixels, by each measure that all that are left tell, then the one of lowest rank."""
    measures: list[Mapping[_Slot, float | None]] = [{slot: slot.band.steps[k] for slot in slots} for k in range(3)]
    left = list(slots)
    for sizes in (*measures, {slot: float(slot.asset.rank) for slot in slots}):
        told = [size for slot in left if (size := sizes[slot]) is not None]
        if len(told) == len(left):
            left = [slot for slot in left if sizes[slot] == min(told)]
    return left[0] if len(left) == 1 else None


def _forms(names: Mapping[_Slot, str | None]) -> frozenset[str]:
    return frozenset(canonical_name(name) for name in names.values() if name)
