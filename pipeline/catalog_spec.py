"""What can be set about catalogs: which columns of an index count, and which of its scenes are wanted."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class CatalogSpec:
    """How lists and tables of scenes are read, and which scenes of them run."""

    path_column: str | None = None
    """Column of an index that holds paths or addresses; None: `path`, `location` or `href`, whichever is there."""
    id_column: str | None = None
    """Column that names the scenes; None: `id` if there is one, else scenes are named after their files."""
    bbox: tuple[float, float, float, float] | None = None
    """`(left, bottom, right, top)` in degrees (EPSG:4326); only scenes that touch it run. None: all."""
    limit: int | None = None
    """Only so many scenes run, the first ones; None: all."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit must be at least 1, not {self.limit}")
        if self.bbox is not None:
            _check_bbox(*self.bbox)


def _check_bbox(left: float, bottom: float, right: float, top: float) -> None:
    if not (-180 <= left <= 180 and -180 <= right <= 180 and -90 <= bottom < top <= 90 and left != right):
        raise SettingsError(
            "bbox must be left,bottom,right,top in degrees, longitudes within -180..180 and latitudes -90 to 90 with "
            f"bottom below top, not {left:g},{bottom:g},{right:g},{top:g}; left over right crosses the antimeridian"
        )
