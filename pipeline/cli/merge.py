"""The command `merge`: the polygons of all scenes in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from pipeline.cli.console import EXIT_DONE, ConfigFile, Overrides, console, option_overrides, say
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
    """Combine the polygons of all scenes into one file and deduplicate objects where scenes overlap."""
    from pipeline.config import SegmentSpec, load_settings

    spec = load_settings(SegmentSpec, config, [*overrides, *option_overrides({"merge.output": into})])
    if show_merge(out, spec.merge, spec.run.work_dir) is None:
        raise SettingsError(f"{out}: holds no whole result of a scene; name the folder that a run wrote with --out")
    return EXIT_DONE


def show_merge(out: str, spec: MergeSpec, work_dir: str | None) -> MergeReport | None:
    """Merge and print a summary; None when there is no result to merge."""
    from pipeline.cli.progress import merge_progress, progress_bars
    from pipeline.merge import merge_scenes
    from pipeline.results import open_results

    with progress_bars(console) as bars:
        report = merge_scenes(out, spec, work_dir=work_dir, progress=merge_progress(bars))
    if report is not None:
        state = "" if report.changed else " (as it was)"
        file, scenes = open_results(out).documents.address(report.file), len(report.scenes)
        say(
            f"{file}{state}: {report.polygons:,} polygons of {scenes:,} scene{'s' if scenes != 1 else ''}; left out "
            f"{report.left_out:,} seen twice and {report.lone:,} lone, joined {report.joined:,} into {report.made:,}"
        )
    return report
