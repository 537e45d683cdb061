"""One raster file of a scene whose bands lie in several files, with what its catalog says of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BandFile:
    """A raster file that holds some of a scene's bands; what is None the file itself says."""

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
    """What the provider calls each band, by which it is found where none is called so; none: as in `names`."""

    def __post_init__(self) -> None:
        lengths = {
            len(each) for each in (self.names, self.nodata, self.scales, self.offsets, self.own_names or self.names)
        }
        if len(lengths) != 1 or not self.names:
            raise ValueError("names, nodata, scales and offsets must be equally many, one per band and at least one")
