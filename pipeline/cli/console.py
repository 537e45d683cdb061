"""Console output, exit codes and options that are shared by the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from pipeline.text import printable, printable_lines

EXIT_DONE, EXIT_SOME_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

TABLE_WIDTH = 150


class PrintableConsole(Console):
    """A console that shows control characters of names as escapes: only rich itself moves the cursor."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of any renderable; what the encoding of the terminal lacks is an escape, too."""
        for text, style, control in super().render(renderable, options):
            shown = text if control or text.isprintable() else printable_lines(text)
            if (encoding := getattr(self.file, "encoding", None) or "utf-8").lower() != "utf-8" and not control:
                shown = shown.encode(encoding, "backslashreplace").decode(encoding)
            yield Segment(shown, style, control)


console = PrintableConsole(stderr=True)

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
    """Print a line verbatim: square brackets are not markup, and long paths are not wrapped."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def show_table(table: Table) -> None:
    """Print a table without cropping, also where the terminal is narrower or absent."""
    wide = PrintableConsole(stderr=True, width=max(console.width, TABLE_WIDTH))
    wide.print(table, crop=False, no_wrap=True)


def escape(text: str) -> str:
    """Text on one line whose square brackets are not markup."""
    from rich.markup import escape

    return escape(printable(text))


def option_overrides(options: Mapping[str, object]) -> list[str]:
    """Settings as `section.key=value`, from options that stand for a setting; None = the option was not given."""
    return [f"{key}={value}" for key, value in options.items() if value is not None]


def show_areas(area_m2: object) -> str:
    """The area of each class as text, verbatim."""
    areas = dict(area_m2) if isinstance(area_m2, dict) else {}
    return ", ".join(f"{name} {area:,.0f} m2" for name, area in areas.items()) or "no area"
