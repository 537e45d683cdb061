"""Band names: find a model's bands by description, colour interpretation, or an explicit mapping.

Names are compared in the STAC `common_name` vocabulary (STAC eo extension, table of common band
names), case and punctuation aside. Sensor numbers such as `B04` are not translated: they mean
different bands on different sensors, and a wrong guess is worse than a question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SceneError

_SYNONYMS = {
    "r": "red",
    "g": "green",
    "b": "blue",
    "gray": "pan",
    "grey": "pan",
    "panchromatic": "pan",
    "nearinfrared": "nir",
    "infrared": "nir",
    "rededge": "rededge",
    "shortwaveinfrared1": "swir16",
    "swir1": "swir16",
    "swir2": "swir22",
    "coastalaerosol": "coastal",
}


def canonical_name(name: str) -> str:
    """Canonical form of a band name, in which names are compared.

    >>> canonical_name("Near-Infrared"), canonical_name("RED"), canonical_name("B04")
    ('nir', 'red', 'b04')
    """
    plain = re.sub(r"[\s_\-.]+", "", name).lower()
    return _SYNONYMS.get(plain, plain)


def offered_bands(
    descriptions: Sequence[str | None],
    interpretations: Sequence[str],
    *,
    explicit: Mapping[str, int],
    use_alpha: bool = False,
) -> dict[str, int]:
    """Name of each band, `{name: 1-based number}`, in file order.

    An explicit mapping takes precedence over descriptions, these over the colour interpretation. A band
    without either is named `band_<number>`; alpha is included only with `use_alpha`.
    """
    offered = dict(explicit)
    for number, (description, interpretation) in enumerate(zip(descriptions, interpretations, strict=True), start=1):
        if number in explicit.values() or (interpretation == "alpha" and not use_alpha):
            continue
        name = description or interpretation
        if name in ("undefined", "alpha") or name in offered:
            name = f"band_{number}"
        offered.setdefault(name, number)
    return offered


def choose_bands(offered: Mapping[str, int], wanted: Sequence[str] | None, *, place: str) -> dict[str, int]:
    """The bands in the order of `wanted`, or all offered ones when that is None."""
    if wanted is None:
        if not offered:
            raise SceneError(f"{place}: has no band besides alpha")
        return dict(sorted(offered.items(), key=lambda item: item[1]))
    by_canonical = {canonical_name(name): number for name, number in reversed([*offered.items()])}
    missing = [name for name in wanted if canonical_name(name) not in by_canonical]
    if missing:
        has = ", ".join(f"{number}: {name}" for name, number in sorted(offered.items(), key=lambda item: item[1]))
        example = ", ".join(f"{name}: {k}" for k, name in enumerate(wanted, start=1))
        raise SceneError(
            f"{place}: the model needs band(s) {', '.join(missing)}, but the file offers {has or 'none'}; "
            f"if you know which is which, set reading.bands, e.g. {{{example}}}"
        )
    return {name: by_canonical[canonical_name(name)] for name in wanted}


@dataclass(frozen=True, kw_only=True)
class BandFile:
    """A raster file that holds some of a scene's bands; None stands for the value in the file itself."""

    location: str
    """Path or address."""
    names: tuple[str | None, ...]
    """Name of each band, in the order of the file."""
    nodata: tuple[float | None, ...]
    """Stored value of each band that means nodata."""
    scales: tuple[float | None, ...]
    """Scale of each band: value = stored * scale + offset."""
    offsets: tuple[float | None, ...]
    """Offset of each band."""
    own_names: tuple[str | None, ...] = ()
    """The provider's own name of each band, used where no band has a wanted name; empty: as in `names`."""

    def __post_init__(self) -> None:
        lengths = {
            len(each) for each in (self.names, self.nodata, self.scales, self.offsets, self.own_names or self.names)
        }
        if len(lengths) != 1 or not self.names:
            raise ValueError("names, nodata, scales and offsets must have one value per band, and at least one band")


def catalog_values(
    listed: BandFile | None, fact: Literal["scales", "offsets", "nodata"], numbers: Sequence[int]
) -> list[float | None]:
    """A catalog's values of the bands with 1-based `numbers`; None where it gives none."""
    known: tuple[float | None, ...] = () if listed is None else getattr(listed, fact)
    return [known[number - 1] if number <= len(known) else None for number in numbers]
