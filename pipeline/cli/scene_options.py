"""The options of commands over a catalog: where settings are, which scenes are wanted, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pipeline.cli.console import ConfigFile, Crs, Overrides, shortcuts
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
    str | None,
    Parameter(help="Only scenes that touch left,bottom,right,top in degrees.", allow_leading_hyphen=True),
]
AreaFile = Annotated[
    Path | None, Parameter(help="File of polygons: only what lies in them is done, scenes and pixels.")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """What a command over a catalog is told beside the scenes."""

    config: ConfigFile = None
    overrides: Overrides = ()
    crs: Crs = None
    limit: Annotated[int | None, Parameter(help="Only so many scenes, the first ones.")] = None
    bbox: Bbox = None
    since: Annotated[str | None, Parameter(help="Only scenes taken since then, e.g. 2026-05-01, or 7d.")] = None
    area: AreaFile = None

    def settings(self, own: Mapping[str, object]) -> SegmentSpec:
        """The settings of a run: the file's, under those of `--set`, under those of other options.

        Args:
            own: `section.key` -> value of the options that only this command takes; None: not given.

        Raises:
            SettingsError: the file, a setting or an option is wrong.
        """
        from pipeline.config import SegmentSpec, load_settings

        if self.bbox is not None and self.bbox.count(",") != 3:
            raise SettingsError(
                f"--bbox {self.bbox}: must be left,bottom,right,top in degrees, e.g. --bbox 85.2,27.6,85.5,27.8"
            )
        given = {
            "reading.crs": self.crs,
            "area": None if self.area is None else json.dumps(str(self.area)),  # YAML, whatever characters are in it
            **own,
            "catalog.limit": self.limit,
            "catalog.bbox": None if self.bbox is None else f"[{self.bbox}]",
            "catalog.since": self.since,
        }
        return load_settings(SegmentSpec, self.config, [*self.overrides, *shortcuts(given)])


NOTHING_TOLD = SceneOptions()
