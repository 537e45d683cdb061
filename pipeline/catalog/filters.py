"""Filters of catalog scenes by acquisition date, cloud cover, bounding box and area."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import shapely

from pipeline.catalog.entry import describe_entry
from pipeline.catalog.rows import Row
from pipeline.catalog.spec import CatalogSpec
from pipeline.errors import SceneError, ScenemillError
from pipeline.grid import Area, intersects, intersects_bbox, load_area, outline_polygon, rasterize_area
from pipeline.scene import ReadingSpec, Scene, parse_date

if TYPE_CHECKING:
    from pipeline.catalog.entry import CatalogEntry

Excluded = Callable[["CatalogEntry", str], None]
"""Called with an excluded scene and the reason."""
Describe = Callable[[], Scene]
"""Describes the candidate's scene; opens its files at most once."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A scene before filtering."""

    entry: CatalogEntry
    row: Row | None = None
    """Its row of a catalog, None for a scene that is named directly."""


class SceneFilter:
    """Selects scenes; one that must be opened for that and cannot be is selected, with the reason of its refusal."""

    def __init__(
        self, spec: CatalogSpec, reading: ReadingSpec, *, area: str | Path | None, on_excluded: Excluded
    ) -> None:
        """Load the area; `reading` opens scenes whose date or footprint is not in the catalog."""
        self.reading, self._on_excluded = reading, on_excluded
        self._as_stored = replace(reading, resolution_m="native")
        self._area = None if area is None else load_area(area)
        self._box = "area" if spec.bbox is None else "box"
        self.spec = spec if self._area is None or spec.bbox is not None else replace(spec, bbox=self._area.bbox)

    def apply(self, candidates: Iterable[Candidate]) -> Iterator[CatalogEntry]:
        """Yield the selected scenes, and those that cannot be tested as refused."""
        for candidate in candidates:
            entry = candidate.entry
            describe = cache(partial(describe_entry, entry, self._as_stored))
            try:
                reason = self._exclusion(candidate, describe)
            except ScenemillError as error:
                yield replace(entry, refused=str(error))
                continue
            if reason is None:
                yield entry
            else:
                self._on_excluded(entry, reason)

    def _exclusion(self, candidate: Candidate, describe: Describe) -> str | None:
        """Why a scene is excluded, None if it is selected."""
        if not self._is_in_time(candidate, describe):
            return "was not taken between since and until"
        if not self._is_clear(candidate):
            return "is too cloudy"
        if not self._is_in_box(candidate, describe):
            return f"does not touch the {self._box}"
        return None if self._area is None or _is_in(self._area, candidate, describe) else "does not touch the area"

    def _is_in_time(self, candidate: Candidate, describe: Describe) -> bool:
        """Whether a scene was taken between `since` and `until`, by its catalog, else by its own tag."""
        spec, entry, row = self.spec, candidate.entry, candidate.row
        if spec.since is None and spec.until is None:
            return True
        date = entry.acquired if row is None else parse_date(row.date)
        if date is None and entry.refused is None:
            date = describe().acquired
        if date is None and entry.refused is None:
            raise SceneError(
                f"{entry.shown}: its acquisition date is unknown, which catalog.since and catalog.until need; "
                "give it in a column called datetime, or leave them out"
            )
        return date is None or (spec.since_utc or date) <= date <= (spec.until_utc or date)

    def _is_clear(self, candidate: Candidate) -> bool:
        """Whether a STAC Item's cloud cover is at most `cloud_cover`; scenes of other kinds always pass."""
        max_clouds, clouds = self.spec.cloud_cover, candidate.row.clouds if candidate.row is not None else None
        if max_clouds is None or clouds is None:
            return True
        if math.isnan(clouds) and candidate.entry.refused is None:
            raise SceneError("has no eo:cloud_cover, which catalog.cloud_cover needs; leave that setting out")
        return not clouds > max_clouds

    def _is_in_box(self, candidate: Candidate, describe: Describe) -> bool:
        """Whether a scene touches the bounding box, by its footprint, else by its grid."""
        footprint, bbox = _footprint(candidate), self.spec.bbox
        if bbox is None or (footprint is None and candidate.entry.refused is not None):
            return True
        return intersects_bbox(footprint if footprint is not None else outline_polygon(describe().grid), bbox)


def _is_in(area: Area, candidate: Candidate, describe: Describe) -> bool:
    """Whether a scene touches an area, by its footprint, else by its pixels."""
    footprint = _footprint(candidate)
    if footprint is not None:
        return intersects(footprint, area.geographic)
    if candidate.entry.refused is not None:
        return True
    pixels = rasterize_area(area, describe().grid)
    return pixels is None or pixels.count > 0


def _footprint(candidate: Candidate) -> shapely.Geometry | None:
    return candidate.row.footprint if candidate.row is not None else None
