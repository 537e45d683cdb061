"""Commands over a catalog of scenes: what would run, and running it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from pipeline.cli_merge import MergeInto, show_merge
from pipeline.cli_output import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    ConfigFile,
    Crs,
    Overrides,
    console,
    escape,
    say,
    shortcuts,
    show_areas,
)
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.catalog import CatalogEntry
    from pipeline.report import SceneReport

Sources = Annotated[
    str,
    Parameter(
        help="Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), STAC (.json, stac+), s3:// and https://."
    ),
]
Limit = Annotated[int | None, Parameter(help="Only so many scenes, the first ones.")]
Bbox = Annotated[
    str | None,
    Parameter(help="Only scenes that touch left,bottom,right,top in degrees.", allow_leading_hyphen=True),
]

AreaFile = Annotated[
    Path | None, Parameter(help="File of polygons: only what lies in them is done, scenes and pixels.")
]
Since = Annotated[str | None, Parameter(help="Only scenes taken since then, e.g. 2026-05-01, or 7d.")]


def segment(
    *scenes: Sources,
    model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
    out: Annotated[str, Parameter(help="Where the results go, a folder for each scene.")],
    config: ConfigFile = None,
    overrides: Overrides = (),
    crs: Crs = None,
    scheduler: Annotated[str | None, Parameter(help="Address of a dask scheduler, e.g. tcp://host:8786.")] = None,
    max_failures: Annotated[int | None, Parameter(help="End the run when so many scenes have failed.")] = None,
    retry_quarantined: Annotated[bool, Parameter(negative="", help="Try scenes in quarantine again.")] = False,
    merge: MergeInto = None,
    limit: Limit = None,
    bbox: Bbox = None,
    since: Since = None,
    area: AreaFile = None,
) -> int:
    """Segment scenes: probability mosaic, mask, polygons, preview and report for each."""
    from pipeline.catalog import read_catalog
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.distribute import cluster
    from pipeline.progress import progress_bars, scene_watch
    from pipeline.report import RUN, exit_code
    from pipeline.results import open_results
    from pipeline.run import load_run_models, on_devices, segment_catalog

    given = {
        "reading.crs": crs,
        "area": _quoted(area),
        "distribute.scheduler": scheduler,
        "run.max_failures": max_failures,
        "run.retry_quarantined": retry_quarantined or None,
        "merge.into": merge,
    }
    spec = load_settings(SegmentSpec, config, [*overrides, *shortcuts(given), *_selection(limit, bbox, since)])
    entries = [*read_catalog(scenes, spec.catalog, spec.reading, area=spec.area)]
    predictor = load_run_models(model, spec)
    reports: list[SceneReport] = []
    try:
        with on_devices(spec) as spec, cluster(spec.distribute) as client, progress_bars(console) as bars:
            scenes_done = segment_catalog(
                entries,
                out,
                predictor=predictor,
                spec=spec,
                client=client,
                watcher=lambda entry: scene_watch(bars, entry.id, beside=client is not None),
            )
            with closing(scenes_done):
                for report in scenes_done:
                    reports.append(report)
                    if report.status != "not run":
                        _show_report(report)
        _show_not_run(reports)
    finally:
        if reports:
            say(f"summary: {open_results(out).address(RUN)}")
    if spec.merge.into is not None:
        show_merge(out, spec.merge, spec.run.work_dir)
    if not reports:
        say("no scene to process")
    return exit_code(reports)


def catalog(
    *scenes: Sources,
    model: Annotated[list[Path] | None, Parameter(help="Say which scenes fit this checkpoint, or several.")] = None,
    out: Annotated[str | None, Parameter(help="Say which scenes are done there; needs --model.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = (),
    crs: Crs = None,
    limit: Limit = None,
    bbox: Bbox = None,
    since: Since = None,
    area: AreaFile = None,
) -> int:
    """List the scenes that a run would process, one by one, and why, or why not; processes nothing."""
    from pipeline.catalog import read_catalog
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.outlook import foresee

    spec = load_settings(
        SegmentSpec,
        config,
        [*overrides, *shortcuts({"reading.crs": crs, "area": _quoted(area)}), *_selection(limit, bbox, since)],
    )
    output = Console()
    counts = {"runs": 0, "done": 0, "refused": 0, "left out": 0}

    def tell(verdict: str, entry: CatalogEntry, reason: str) -> None:
        counts[verdict] += 1
        line = f"{verdict:7} {entry.id}: {entry.location}: {reason}"
        output.print(line, markup=False, highlight=False, soft_wrap=True)

    left_out = partial(tell, "left out")
    entries = read_catalog(scenes, spec.catalog, spec.reading, area=spec.area, left_out=left_out)
    for each in foresee(entries, spec, models=model or (), out_dir=out):
        tell(each.verdict, each.entry, each.reason)
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count or verdict != "left out"))
    return EXIT_SOME_FAILED if counts["refused"] else EXIT_DONE


def _quoted(path: Path | None) -> str | None:
    """A path as a YAML value, whatever characters are in it."""
    return None if path is None else json.dumps(str(path))


def _selection(limit: int | None, bbox: str | None, since: str | None) -> list[str]:
    if bbox is not None and bbox.count(",") != 3:
        raise SettingsError(f"--bbox {bbox}: must be left,bottom,right,top in degrees, e.g. --bbox 85.2,27.6,85.5,27.8")
    return shortcuts(
        {"catalog.limit": limit, "catalog.bbox": None if bbox is None else f"[{bbox}]", "catalog.since": since}
    )


def _show_report(report: SceneReport) -> None:
    name = escape(report.scene)
    if report.reason is not None:
        colour = "bold red" if report.status == "failed" else "yellow"
        text = f"[{colour}]{report.status:7}[/] {name}: {escape(report.reason)}"
    else:
        seconds = sum(report.seconds.values())
        rate = f", {report.pixels / seconds / 1e6:.1f} Mpx/s" if report.status == "done" and seconds else ""
        rate += f", {report.passes} passes per tile" if report.passes > 1 else ""
        text = (
            f"[bold green]{report.status:7}[/] {name}: {report.polygons:,} polygons, {show_areas(report.area_m2)}"
            f"{rate} -> {escape(report.folder)}"
        )
    console.print(text, highlight=False, soft_wrap=True)


def _show_not_run(reports: Sequence[SceneReport]) -> None:
    """One line for all scenes that were not begun: they have one reason, and may be many."""
    left_out = [report for report in reports if report.status == "not run"]
    if left_out:
        say(f"not run {len(left_out):,} scenes: {left_out[0].reason}")
