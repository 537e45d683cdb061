"""Settings of merging the polygons of all scenes into one file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class MergeSpec:
    """Whether and how the polygons of all scenes become one file; never changes the result of a scene."""

    output: Literal["gpkg", "parquet"] | None = field(default=None, metadata={"alias": "into"})
    """A run ends with `polygons.gpkg` or `polygons.parquet` over all scenes; None: it does not."""
    priority: Literal["newest", "oldest", "finest"] = field(default="newest", metadata={"alias": "prefer"})
    """Which scene takes precedence where several overlap: by date, or by pixel size; then by scene id."""
    min_overlap: float = field(default=0.5, metadata={"alias": "same"})
    """Polygons of one class match if their common area is at least this share of the smaller one, counted where both
    scenes have data; in (0, 1]."""
    margin_px: float = 32.0
    """A scene is less reliable within this distance of the edge of its data; pixels of the scene."""
    unmatched: Literal["drop", "keep"] = field(default="drop", metadata={"alias": "lone"})
    """What to do with a polygon that a preferred scene, with data for all of it, does not show."""
    crs: str | None = None
    """CRS of the file, e.g. EPSG:3035; None: that of the scenes if they share one, else EPSG:4326."""

    def __post_init__(self) -> None:
        if not 0 < self.min_overlap <= 1:
            raise SettingsError(f"min_overlap must be above 0 and at most 1, not {self.min_overlap}")
        if not 0 <= self.margin_px < math.inf:
            raise SettingsError(f"margin_px must be 0 or more pixels and finite, not {self.margin_px}")
