"""What can be set about catalogs: which columns and assets count, and which scenes are wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline.errors import SettingsError
from pipeline.scene import parse_ago, parse_date


@dataclass(frozen=True, kw_only=True)
class CatalogSpec:
    """How lists, tables and STAC catalogs of scenes are read, and which scenes of them run."""

    path_column: str | None = None
    """Column of an index that holds paths or addresses; None: `path`, `location` or `href`, whichever is there."""
    id_column: str | None = None
    """Column that names the scenes; None: `id` if there is one, else scenes are named after their files."""
    date_column: str | None = None
    """Column that says when scenes were taken; None: `datetime` or `date`, if there is one."""
    root: str | None = None
    """Folder in which relative paths of lists and links of local STAC documents must stay; None: that of the source."""
    assets: tuple[str, ...] = ()
    """Keys of the assets of STAC Items that hold the bands, the preferred first; none: found by media type and role."""
    item_scales: bool = True
    """Take scale and offset of bands from STAC Items where they tell them; false: from the files alone."""
    cloud_cover: float | None = None
    """Only STAC Items with at most so many percent of clouds; None: all."""
    since: str | None = None
    """Only scenes that were taken then or later, `YYYY-MM-DD` or with a time (UTC, or with its zone), or in the days or
    hours before the run, `7d` or `36h`; None: all."""
    until: str | None = None
    """Only scenes that were taken then or earlier; a date alone means its end; None: all."""
    bbox: tuple[float, float, float, float] | None = None
    """`(left, bottom, right, top)` in degrees (EPSG:4326); only scenes that touch it run. None: all."""
    limit: int | None = None
    """Only so many scenes run, the first ones; None: all."""

    def __post_init__(self) -> None:
        self._check_dates()
        if self.cloud_cover is not None and not 0 <= self.cloud_cover <= 100:
            raise SettingsError(f"cloud_cover must be 0 to 100 percent, not {self.cloud_cover:g}")
        if len(set(self.assets)) < len(self.assets):
            raise SettingsError(f"assets must name each asset once, not {', '.join(self.assets)}")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit must be at least 1, not {self.limit}")
        if self.bbox is not None:
            _check_bbox(*self.bbox)

    def at(self, now: datetime) -> CatalogSpec:
        """The same with `since` as a date, where it counts back from now."""
        ago = parse_ago(self.since, now)
        return self if ago is None else replace(self, since=ago)

    @property
    def first(self) -> str | None:
        """The first second that counts, in UTC; None: all, or `since` counts back from a time unknown here."""
        return parse_date(self.since)

    @property
    def last(self) -> str | None:
        """The last second that counts, in UTC."""
        return parse_date(self.until, end=True)

    def _check_dates(self) -> None:
        if self.since is not None and self.first is None and parse_ago(self.since, datetime.now(UTC)) is None:
            raise SettingsError(f"since must be a date, e.g. 2026-05-01, or days or hours, e.g. 7d, not {self.since!r}")
        if self.until is not None and self.last is None:
            raise SettingsError(f"until must be a date, e.g. 2026-05-01 or 2026-05-01T12:00:00Z, not {self.until!r}")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise SettingsError(f"since must not be later than until, but {self.since} is later than {self.until}")


def _check_bbox(left: float, bottom: float, right: float, top: float) -> None:
    if not (-180 <= left <= 180 and -180 <= right <= 180 and -90 <= bottom < top <= 90 and left != right):
        raise SettingsError(
            "bbox must be left,bottom,right,top in degrees, longitudes within -180..180 and latitudes -90 to 90 with "
            f"bottom below top, not {left:g},{bottom:g},{right:g},{top:g}; left over right crosses the antimeridian"
        )
