"""The command that makes one file of the polygons of all scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from pipeline.cli.console import EXIT_DONE, ConfigFile, Overrides, console, say, shortcuts
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.merge import MergeReport, MergeSpec

MergeInto = Annotated[
    Literal["gpkg", "parquet"] | None, Parameter(help="Merge the polygons of all scenes into one file of this kind.")
]


def merge(
    out: Annotated[str, Parameter(help="Where the results of runs lie, a folder for each scene.")],
    *,
    into: MergeInto = None,
    config: ConfigFile = None,
    overrides: Overrides = (),
) -> int:
    """Make one file of the polygons of all scenes; what several scenes saw comes out once and whole."""
    from pipeline.config import SegmentSpec, load_settings

    spec = load_settings(SegmentSpec, config, [*overrides, *shortcuts({"merge.into": into})])
    if show_merge(out, spec.merge, spec.run.work_dir) is None:
        raise SettingsError(f"{out}: holds no whole result of a scene; name the folder that a run wrote with --out")
    return EXIT_DONE


def show_merge(out: str, spec: MergeSpec, work_dir: str | None) -> MergeReport | None:
    """Merge, and say what it came to; None where there is nothing to merge."""
    from pipeline.cli.progress import merge_watch, progress_bars
    from pipeline.merge import merge_scenes
    from pipeline.results import open_results

    with progress_bars(console) as bars:
        found = merge_scenes(out, spec, work_dir=work_dir, watch=merge_watch(bars))
    if found is not None:
        state = "" if found.is_new else " (as it was)"
        file, scenes = open_results(out).address(found.file), len(found.scenes)
        say(
            f"{file}{state}: {found.polygons:,} polygons of {scenes:,} scene{'s' if scenes != 1 else ''}; left out "
            f"{found.left_out:,} seen twice and {found.lone:,} lone, joined {found.joined:,} into {found.made:,}"
        )
    return found
