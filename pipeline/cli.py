"""The `scenemill` command: thin; every command is one call into the library and a few lines to show it.

Exit codes: 0 all done; 1 some scenes failed, the others are complete; 2 wrong usage or settings; 3 all done but scenes
in quarantine; 130 and 143 stopped by Ctrl-C and SIGTERM.
Libraries are imported where a command needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from pipeline import __version__
from pipeline.cli_output import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    ConfigFile,
    Overrides,
    console,
    escape,
    say,
)
from pipeline.cli_training import evaluate, export_onnx, import_model, train
from pipeline.errors import ModelError, ScenemillError, SettingsError

if TYPE_CHECKING:
    from pipeline.report import SceneReport

app = App(
    name="scenemill",
    version=__version__,
    help="Segment large georeferenced scenes: seamless probability mosaics and whole polygons.",
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False

Sources = Annotated[
    str, Parameter(help="Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), s3:// and https:// addresses.")
]
Limit = Annotated[int | None, Parameter(help="Only so many scenes, the first ones.")]
Bbox = Annotated[
    str | None,
    Parameter(help="Only scenes that touch left,bottom,right,top in degrees.", allow_leading_hyphen=True),
]
Crs = Annotated[str | None, Parameter(help="CRS of scenes that carry none, e.g. EPSG:32633.")]


@app.command
def segment(
    *scenes: Sources,
    model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
    out: Annotated[Path, Parameter(help="Folder for the results, one folder per scene.")],
    config: ConfigFile = None,
    overrides: Overrides = (),
    crs: Crs = None,
    scheduler: Annotated[str | None, Parameter(help="Address of a dask scheduler, e.g. tcp://host:8786.")] = None,
    max_failures: Annotated[int | None, Parameter(help="End the run when so many scenes have failed.")] = None,
    retry_quarantined: Annotated[bool, Parameter(negative="", help="Try scenes in quarantine again.")] = False,
    limit: Limit = None,
    bbox: Bbox = None,
) -> int:
    """Segment scenes: probability mosaic, mask, polygons, preview and report for each."""
    from pipeline.catalog import read_catalog
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.distribute import cluster
    from pipeline.progress import progress_bars, scene_watch
    from pipeline.report import RUN, exit_code
    from pipeline.run import load_run_models, on_devices, segment_catalog

    shortcuts = {
        "reading.crs": crs,
        "distribute.scheduler": scheduler,
        "run.max_failures": max_failures,
        "run.retry_quarantined": retry_quarantined or None,
    }
    spec = load_settings(SegmentSpec, config, [*overrides, *_shortcuts(shortcuts), *_selection(limit, bbox)])
    entries = [*read_catalog(scenes, spec.catalog, spec.reading)]
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
                watcher=lambda entry: scene_watch(bars, entry.id),
            )
            with closing(scenes_done):
                for report in scenes_done:
                    reports.append(report)
                    if report.status != "not run":
                        _show_report(report)
        _show_not_run(reports)
    finally:
        if reports:
            say(f"summary: {out / RUN}")
    if not reports:
        say("no scene to process")
    return exit_code(reports)


@app.command
def catalog(
    *scenes: Sources,
    model: Annotated[list[Path] | None, Parameter(help="Say which scenes fit this checkpoint, or several.")] = None,
    out: Annotated[Path | None, Parameter(help="Say which scenes are done in this folder; needs --model.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = (),
    crs: Crs = None,
    limit: Limit = None,
    bbox: Bbox = None,
) -> int:
    """List the scenes that a run would process, one by one, and why, or why not; processes nothing."""
    from pipeline.catalog import read_catalog
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.outlook import foresee

    spec = load_settings(SegmentSpec, config, [*overrides, *_shortcuts({"reading.crs": crs}), *_selection(limit, bbox)])
    entries = read_catalog(scenes, spec.catalog, spec.reading)
    output = Console()
    counts = {"runs": 0, "done": 0, "refused": 0}
    for each in foresee(entries, spec, models=model or (), out_dir=out):
        counts[each.verdict] += 1
        line = f"{each.verdict:7} {each.entry.id}: {each.entry.location}: {each.reason}"
        output.print(line, markup=False, highlight=False, soft_wrap=True)
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return EXIT_SOME_FAILED if counts["refused"] else EXIT_DONE


@app.command
def vectorize(
    mosaic: Annotated[Path, Parameter(help="A probability.tif written by scenemill.")],
    *,
    out: Annotated[Path | None, Parameter(help=".gpkg, .parquet or .fgb; default: vectorized.gpkg beside it.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = (),
) -> int:
    """Make polygons again from an existing mosaic, with other settings and without inference."""
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.progress import progress_bars, scene_watch
    from pipeline.segment import vectorize_mosaic

    _check_exists(str(mosaic))
    spec = load_settings(SegmentSpec, config, overrides)
    target = out or mosaic.with_name("vectorized.gpkg")
    with progress_bars(console) as bars:
        totals = vectorize_mosaic(mosaic, target, spec=spec.polygons, watch=scene_watch(bars, mosaic.parent.name))
    say(f"{target}: {totals.count:,} polygons, {_areas(totals.area_m2)}")
    return EXIT_DONE


@app.command
def inspect(
    path: Annotated[str, Parameter(help="A scene, a checkpoint (.safetensors) or a mosaic.")],
    *,
    model: Annotated[Path | None, Parameter(help="Check whether the scene fits this checkpoint.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = (),
    crs: Crs = None,
) -> int:
    """Tell what a scene, checkpoint or mosaic is, and whether scene and model fit."""
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.inspection import inspect_path

    _check_exists(path)
    spec = load_settings(SegmentSpec, config, [*overrides, *_shortcuts({"reading.crs": crs})])
    kind, facts = inspect_path(path, spec.reading, model=model)
    table = Table(show_header=False, box=None)
    for name, value in facts:
        table.add_row(f"[bold]{escape(name)}", escape(value))
    output = Console()
    output.print(f"{path}: {kind}", markup=False, highlight=False, soft_wrap=True)
    output.print(table)
    return EXIT_SOME_FAILED if facts[-1][1].startswith("no:") else EXIT_DONE


for _command in (train, evaluate, import_model, export_onnx):
    app.command(_command)


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the scene and the results.")] = Path("demo-out"),
    size: Annotated[int, Parameter(help="Side of the generated scene in pixels, at least 256.")] = 4096,
    seed: Annotated[int, Parameter(help="Which town is generated.")] = 7,
) -> int:
    """Generate a town, segment it through the Prefect flow, and score the result against the truth."""
    from flows.demo import run_demo

    for line in run_demo(out, size=size, seed=seed):
        say(line)
    return EXIT_DONE


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative="", help="Show tracebacks and debug messages.")] = False,
) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if debug:
        logging.getLogger("pipeline").setLevel(logging.DEBUG)
    try:
        code = app(tokens, exit_on_error=False, result_action="return_value")
    except ScenemillError as error:
        if debug:
            console.print_exception()
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return EXIT_USAGE if isinstance(error, SettingsError | ModelError) else EXIT_SOME_FAILED
    except CycloptsError:
        raise
    except Exception as error:
        if debug:
            raise
        say(f"error: unexpected {type(error).__name__}: {error}; --debug shows where, please report it")
        return EXIT_SOME_FAILED
    return code if isinstance(code, int) else EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    try:
        with _sigterm_as_an_exception():
            code = app.meta(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        code = EXIT_USAGE
    except KeyboardInterrupt as stop:
        console.print("stopped; finished scenes are complete, run again to continue", highlight=False)
        code = EXIT_TERMINATED if isinstance(stop, _Terminated) else EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: what is open is closed, and `run.json` written."""


@contextmanager
def _sigterm_as_an_exception() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _check_exists(path: str) -> None:
    if "://" not in path and not Path(path).exists():
        raise SettingsError(f"{path}: no such file; check the path")


def _shortcuts(given: Mapping[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _selection(limit: int | None, bbox: str | None) -> list[str]:
    if bbox is not None and bbox.count(",") != 3:
        raise SettingsError(f"--bbox {bbox}: must be left,bottom,right,top in degrees, e.g. --bbox 85.2,27.6,85.5,27.8")
    return _shortcuts({"catalog.limit": limit, "catalog.bbox": None if bbox is None else f"[{bbox}]"})


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
            f"[bold green]{report.status:7}[/] {name}: {report.polygons:,} polygons, {_areas(report.area_m2)}"
            f"{rate} -> {escape(report.folder)}"
        )
    console.print(text, highlight=False, soft_wrap=True)


def _show_not_run(reports: Sequence[SceneReport]) -> None:
    """One line for all scenes that were not begun: they have one reason, and may be many."""
    left_out = [report for report in reports if report.status == "not run"]
    if left_out:
        say(f"not run {len(left_out):,} scenes: {left_out[0].reason}")


def _areas(area_m2: object) -> str:
    areas = dict(area_m2) if isinstance(area_m2, dict) else {}
    return ", ".join(f"{name} {area:,.0f} m2" for name, area in areas.items()) or "no area"
