"""Options shared by commands that take a catalog: settings, selection of scenes, and their CRS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pipeline.cli.console import ConfigFile, Crs, Overrides, option_overrides
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.config import SegmentSpec

Sources = Annotated[
    str,
    Parameter(
        help="Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), STAC (.json, stac+), s3:// and https://."
    ),
]
Bbox = Annotated[
    str | None, Parameter(help="Only scenes that touch left,bottom,right,top in degrees.", allow_leading_hyphen=True)
]
AreaFile = Annotated[Path | None, Parameter(help="File of polygons: only scenes and pixels inside them are processed.")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """Options of a command over a catalog."""

    config: ConfigFile = None
    overrides: Overrides = ()
    crs: Crs = None
    limit: Annotated[int | None, Parameter(help="Only the first n scenes.")] = None
    bbox: Bbox = None
    since: Annotated[str | None, Parameter(help="Only scenes taken since then, e.g. 2026-05-01, or 7d.")] = None
    area: AreaFile = None

    def settings(self, own: Mapping[str, object]) -> SegmentSpec:
        """The settings of a run: the file, then `--set`, then the command's own options (None = not given)."""
        from pipeline.config import SegmentSpec, load_settings

        if self.bbox is not None and self.bbox.count(",") != 3:
            raise SettingsError(
                f"--bbox {self.bbox}: must be left,bottom,right,top in degrees, e.g. --bbox 85.2,27.6,85.5,27.8"
            )
        options = {
            "reading.crs": self.crs,
            "area": None if self.area is None else json.dumps(str(self.area)),  # YAML, whatever characters are in it
            **own,
            "catalog.limit": self.limit,
            "catalog.bbox": None if self.bbox is None else f"[{self.bbox}]",
            "catalog.since": self.since,
        }
        return load_settings(SegmentSpec, self.config, [*self.overrides, *option_overrides(options)])


DEFAULT_OPTIONS = SceneOptions()
