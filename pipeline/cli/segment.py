"""The commands `segment` and `catalog`: run a catalog of scenes, or list what a run would process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pipeline.cli.console import EXIT_DONE, EXIT_SOME_FAILED, PrintableConsole, console, escape, say, show_areas
from pipeline.cli.merge import MergeInto, show_merge
from pipeline.cli.scene_options import DEFAULT_OPTIONS, SceneOptions, Sources
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.catalog import CatalogEntry
    from pipeline.config import SegmentSpec
    from pipeline.results import SceneReport


def segment(
    *scenes: Sources,
    model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
    out: Annotated[str, Parameter(help="Where the results go, a folder for each scene.")],
    scheduler: Annotated[str | None, Parameter(help="Address of a dask scheduler, e.g. tcp://host:8786.")] = None,
    max_failures: Annotated[int | None, Parameter(help="End the run after n failed scenes.")] = None,
    retry_quarantined: Annotated[bool, Parameter(negative="", help="Try scenes in quarantine again.")] = False,
    merge: MergeInto = None,
    options: SceneOptions = DEFAULT_OPTIONS,
) -> int:
    """Segment scenes: probability mosaic, mask, polygons, preview and report for each."""
    from pipeline.results import exit_code

    spec = options.settings(
        {
            "distribute.scheduler": scheduler,
            "run.max_failures": max_failures,
            "run.retry_quarantined": retry_quarantined or None,
            "merge.output": merge,
        }
    )
    reports = _show_run(scenes, model, out, spec)
    if spec.merge.output is not None:
        show_merge(out, spec.merge, spec.run.work_dir)
    if not reports:
        say("no scene to process")
    return exit_code(reports)


def _show_run(scenes: Sequence[str], models: Sequence[Path], out: str, spec: SegmentSpec) -> Sequence[SceneReport]:
    """Run a catalog and print the result of each scene."""
    from pipeline.catalog import read_catalog
    from pipeline.cli.progress import progress_bars, scene_progress
    from pipeline.run import load_run_models, segment_catalog, uses_remote_model

    entries = [*read_catalog(scenes, spec.catalog, spec.reading, area=spec.area)]
    predictor = load_run_models(models, spec)
    concurrent = uses_remote_model(spec.inference, spec.distribute)
    with _summary(out) as reports, progress_bars(console) as bars:
        run = segment_catalog(
            entries,
            out,
            predictor=predictor,
            spec=spec,
            progress_of=lambda entry: scene_progress(bars, entry.id, concurrent=concurrent),
        )
        with closing(run):
            for report in run:
                reports.append(report)
                if report.status != "not run":
                    _show_report(report)
    return reports


@contextmanager
def _summary(out: str) -> Iterator[list[SceneReport]]:
    """Yield a list for the reports of a run; print afterwards how many were not run, and where the summary is."""
    from pipeline.results import RUN, open_results

    reports: list[SceneReport] = []
    try:
        yield reports
        _show_not_run(reports)
    finally:
        if reports:
            say(f"summary: {open_results(out).documents.address(RUN)}")


def _show_report(report: SceneReport) -> None:
    name = escape(report.scene)
    if report.reason is not None:
        colour = "bold red" if report.status == "failed" else "yellow"
        text = f"[{colour}]{report.status:7}[/] {name}: {escape(report.reason)}"
    else:
        seconds = sum(report.statistics.seconds.values())
        rate = f", {report.statistics.pixels / seconds / 1e6:.1f} Mpx/s" if report.status == "done" and seconds else ""
        rate += f", {report.inputs.passes} passes per tile" if report.inputs.passes > 1 else ""
        areas = escape(show_areas(report.area_m2))
        text = (
            f"[bold green]{report.status:7}[/] {name}: {report.polygons:,} polygons, {areas}"
            f"{rate} -> {escape(report.folder)}"
        )
    console.print(text, highlight=False, soft_wrap=True)


def _show_not_run(reports: Sequence[SceneReport]) -> None:
    """One line for all scenes that were not started: they have one reason, and may be many."""
    left_out = [report for report in reports if report.status == "not run"]
    if left_out:
        say(f"not run {len(left_out):,} scenes: {left_out[0].reason}")


def catalog(
    *scenes: Sources,
    model: Annotated[list[Path] | None, Parameter(help="Show which scenes fit this checkpoint, or several.")] = None,
    out: Annotated[str | None, Parameter(help="Show which scenes are done there; needs --model.")] = None,
    options: SceneOptions = DEFAULT_OPTIONS,
) -> int:
    """Dry run: list each scene, whether a run would process it, and why; processes nothing."""
    from pipeline.catalog import read_catalog
    from pipeline.run import plan_run

    spec = options.settings({})
    output = PrintableConsole()
    counts = {"runs": 0, "done": 0, "refused": 0, "left out": 0}

    def show(action: str, entry: CatalogEntry, reason: str) -> None:
        counts[action] += 1
        line = printable(f"{action:7} {entry.id}: {entry.shown}: {reason}")
        output.print(line, markup=False, highlight=False, soft_wrap=True)

    left_out = partial(show, "left out")
    entries = read_catalog(scenes, spec.catalog, spec.reading, area=spec.area, on_excluded=left_out)
    for each in plan_run(entries, spec, models=model or (), out_dir=out):
        show(each.action, each.entry, each.reason)
    say(", ".join(f"{count} {action}" for action, count in counts.items() if count or action != "left out"))
    return EXIT_SOME_FAILED if counts["refused"] else EXIT_DONE
