"""What can be set about one file of polygons over all scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class MergeSpec:
    """Whether and how the polygons of all scenes become one file; never changes the result of a scene."""

    into: Literal["gpkg", "parquet"] | None = None
    """A run ends with `polygons.gpkg` or `polygons.parquet` over all scenes; None: it does not."""
    prefer: Literal["newest", "oldest", "finest"] = "newest"
    """Whose word counts where several scenes saw the same: by date, or by the size of pixels; then by scene id."""
    same: float = 0.5
    """Polygons of one class are one thing if so much of the smaller is common, of what both scenes saw; in (0, 1]."""
    margin_px: float = 32.0
    """A scene is less trusted so near to the end of its data; pixels of the scene."""
    lone: Literal["drop", "keep"] = "drop"
    """What becomes of a polygon where a preferred scene saw the whole place and shows nothing like it."""
    crs: str | None = None
    """CRS of the file, e.g. EPSG:3035; None: the scenes' own if they have one in common, else EPSG:4326."""

    def __post_init__(self) -> None:
        if not 0 < self.same <= 1:
            raise SettingsError(f"same must be above 0 and at most 1, not {self.same}")
        if not 0 <= self.margin_px < math.inf:
            raise SettingsError(f"margin_px must be 0 or more pixels and finite, not {self.margin_px}")
