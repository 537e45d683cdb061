"""What the commands share: the console, exit codes, and the options that several of them take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

console = Console(stderr=True)
WHOLE_TABLE = 150
"""Characters that the widest of our tables takes."""

ConfigFile = Annotated[Path | None, Parameter(help="YAML file of settings; see docs/guide/configuration.md.")]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(name="--set", help="One setting as section.key=value, e.g. --set tiling.tile_size=256; repeatable."),
]
Crs = Annotated[str | None, Parameter(help="CRS of scenes that carry none, e.g. EPSG:32633.")]
Images = Annotated[list[str], Parameter(help="Scenes, or folders of scenes.", consume_multiple=True)]
Labels = Annotated[
    list[Path],
    Parameter(help="Vector files or mask rasters, one for all scenes, or folders of them.", consume_multiple=True),
]


def say(text: str) -> None:
    """Print a line as it is: square brackets in paths are no markup, and long paths are not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show_table(table: Table) -> None:
    """Print a table whole: where the window is narrow, or there is none, its lines run on."""
    wide = Console(stderr=True, width=max(console.width, WHOLE_TABLE))
    wide.print(table, crop=False, no_wrap=True)


def escape(text: str) -> str:
    """Text in which square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def shortcuts(given: Mapping[str, object]) -> list[str]:
    """Settings, as `section.key=value`, of the options that were given."""
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def show_areas(area_m2: object) -> str:
    """The area of each class, in words."""
    areas = dict(area_m2) if isinstance(area_m2, dict) else {}
    return ", ".join(f"{name} {area:,.0f} m2" for name, area in areas.items()) or "no area"
