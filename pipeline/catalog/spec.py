"""Settings of catalogs: columns and assets to read, and filters of scenes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline.errors import SettingsError
from pipeline.scene import parse_ago, parse_date
from pipeline.storage import check_host_pattern


@dataclass(frozen=True, kw_only=True)
class CatalogSpec:
    """How lists, tables and STAC catalogs of scenes are read, and which of their scenes run."""

    path_column: str | None = None
    """Column of paths or addresses; None: `path`, `location` or `href`, whichever exists."""
    id_column: str | None = None
    """Column of scene ids; None: `id` if it exists, else scenes are named after their files."""
    date_column: str | None = None
    """Column of acquisition dates; None: `datetime` or `date`, if one exists."""
    root: str | None = None
    """Folder that relative paths of lists and links of local STAC documents must stay in; None: the source's folder."""
    hosts: tuple[str, ...] = ()
    """Hosts that are not public and that catalogs and redirects may lead to: names, `name:port`, patterns such as
    `*.example.org`, and networks such as `10.1.0.0/16`; empty: only hosts that are named directly."""
    assets: tuple[str, ...] = ()
    """Keys of the STAC assets that hold the bands, the preferred first; empty: found by media type and role."""
    item_scales: bool = True
    """Take scale and offset of bands from STAC Items that have them; false: from the files only."""
    cloud_cover: float | None = None
    """Maximum cloud cover of STAC Items in percent; None: all."""
    since: str | None = None
    """Earliest acquisition: `YYYY-MM-DD`, with a time (UTC, or with its zone), or the days or hours before the run,
    `7d` or `36h`; None: all."""
    until: str | None = None
    """Latest acquisition; a date without a time means its end; None: all."""
    bbox: tuple[float, float, float, float] | None = None
    """`(left, bottom, right, top)` in degrees (EPSG:4326) that scenes must touch; None: all."""
    limit: int | None = None
    """Maximum number of scenes, the first ones; None: all."""

    def __post_init__(self) -> None:
        self._check_dates()
        for host in self.hosts:
            check_host_pattern(host)
        if self.cloud_cover is not None and not 0 <= self.cloud_cover <= 100:
            raise SettingsError(f"cloud_cover must be 0 to 100 percent, not {self.cloud_cover:g}")
        if len(set(self.assets)) < len(self.assets):
            raise SettingsError(f"assets must name each asset once, not {', '.join(self.assets)}")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit must be at least 1, not {self.limit}")
        if self.bbox is not None:
            _check_bbox(*self.bbox)

    def at(self, now: datetime) -> CatalogSpec:
        """These settings with a relative `since` resolved to a date."""
        ago = parse_ago(self.since, now)
        return self if ago is None else replace(self, since=ago)

    @property
    def since_utc(self) -> str | None:
        """`since` in UTC; None: no limit, or `since` is relative."""
        return parse_date(self.since)

    @property
    def until_utc(self) -> str | None:
        """The last second of `until` in UTC."""
        return parse_date(self.until, end=True)

    def _check_dates(self) -> None:
        if self.since is not None and self.since_utc is None and parse_ago(self.since, datetime.now(UTC)) is None:
            raise SettingsError(f"since must be a date, e.g. 2026-05-01, or days or hours, e.g. 7d, not {self.since!r}")
        if self.until is not None and self.until_utc is None:
            raise SettingsError(f"until must be a date, e.g. 2026-05-01 or 2026-05-01T12:00:00Z, not {self.until!r}")
        if self.since_utc is not None and self.until_utc is not None and self.since_utc > self.until_utc:
            raise SettingsError(f"since must not be later than until, but {self.since} is later than {self.until}")


def _check_bbox(left: float, bottom: float, right: float, top: float) -> None:
    if not (-180 <= left <= 180 and -180 <= right <= 180 and -90 <= bottom < top <= 90 and left != right):
        raise SettingsError(
            "bbox must be left,bottom,right,top in degrees, longitudes within -180..180 and latitudes -90 to 90 with "
            f"bottom below top, not {left:g},{bottom:g},{right:g},{top:g}; left over right crosses the antimeridian"
        )
