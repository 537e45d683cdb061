"""Which scenes of a catalog are wanted: taken in time, clear of clouds, touching the box, touching the area."""

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
"""Told a scene that is not wanted, and why."""
Describe = Callable[[], Scene]
"""Opens the scene in question, once at most."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A scene before it is chosen."""

    entry: CatalogEntry
    """The scene."""
    row: Row | None = None
    """The row that it comes from, None for a scene that is named by itself."""


class SceneFilter:
    """Chooses scenes; one that has to be opened for it and cannot be is chosen, with the reason why it is refused."""

    def __init__(
        self, spec: CatalogSpec, reading: ReadingSpec, *, area: str | Path | None, on_excluded: Excluded
    ) -> None:
        """Take the selections of a run.

        Args:
            spec: dates, clouds and box.
            reading: how scenes are opened where only they say when or where they were taken.
            area: file of polygons.
            on_excluded: called with each scene that is excluded, and the reason.

        Raises:
            SettingsError: the area cannot be read.
        """
        self.reading, self._on_excluded = reading, on_excluded
        self._as_stored = replace(reading, resolution_m="native")
        self._area = None if area is None else load_area(area)
        self._box = "area" if spec.bbox is None else "box"
        self.spec = spec if self._area is None or spec.bbox is not None else replace(spec, bbox=self._area.bbox)

    def apply(self, candidates: Iterable[Candidate]) -> Iterator[CatalogEntry]:
        """The scenes that are wanted, and those of which nobody knows, with the reason."""
        for candidate in candidates:
            entry = candidate.entry
            describe = cache(partial(describe_entry, entry, self._as_stored))
            try:
                reason = self._against(candidate, describe)
            except ScenemillError as error:
                yield replace(entry, refused=str(error))
                continue
            if reason is None:
                yield entry
            else:
                self._on_excluded(entry, reason)

    def _against(self, candidate: Candidate, describe: Describe) -> str | None:
        """Why a scene is not wanted, None where it is."""
        if not self._is_in_time(candidate, describe):
            return "was not taken in time"
        if not self._is_clear(candidate):
            return "is too cloudy"
        if not self._is_in_box(candidate, describe):
            return f"does not touch the {self._box}"
        return None if self._area is None or _is_in(self._area, candidate, describe) else "does not touch the area"

    def _is_in_time(self, candidate: Candidate, describe: Describe) -> bool:
        """Whether a scene was taken between `since` and `until`, by its catalog, else by its own tag.

        Raises:
            SceneError: neither says when.
        """
        spec, entry, row = self.spec, candidate.entry, candidate.row
        if spec.since is None and spec.until is None:
            return True
        date = entry.acquired if row is None else parse_date(row.date)
        if date is None and entry.refused is None:
            date = describe().acquired
        if date is None and entry.refused is None:
            raise SceneError(
                f"{entry.location}: nothing says when it was taken, which catalog.since and catalog.until ask for; "
                "say it in a column called datetime, or leave them out"
            )
        return date is None or (spec.first or date) <= date <= (spec.last or date)

    def _is_clear(self, candidate: Candidate) -> bool:
        """Whether a STAC Item has few enough clouds; scenes of other kinds have no say.

        Raises:
            SceneError: it does not say.
        """
        most, clouds = self.spec.cloud_cover, candidate.row.clouds if candidate.row is not None else None
        if most is None or clouds is None:
            return True
        if math.isnan(clouds) and candidate.entry.refused is None:
            raise SceneError("does not say eo:cloud_cover, which catalog.cloud_cover asks for; leave that setting out")
        return not clouds > most

    def _is_in_box(self, candidate: Candidate, describe: Describe) -> bool:
        """Whether a scene touches the bounding box, by its footprint, else by its grid; raises where it has none."""
        drawn, bbox = _drawn(candidate), self.spec.bbox
        if bbox is None or (drawn is None and candidate.entry.refused is not None):
            return True
        return intersects_bbox(drawn if drawn is not None else outline_polygon(describe().grid), bbox)


def _is_in(area: Area, candidate: Candidate, describe: Describe) -> bool:
    """Whether a scene touches an area, by its footprint, else by its pixels."""
    drawn = _drawn(candidate)
    if drawn is not None:
        return intersects(drawn, area.geographic)
    if candidate.entry.refused is not None:
        return True
    found = rasterize_area(area, describe().grid)
    return found is None or found.count > 0


def _drawn(candidate: Candidate) -> shapely.Geometry | None:
    return candidate.row.footprint if candidate.row is not None else None
