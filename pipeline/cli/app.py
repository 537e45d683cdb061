"""The command line `scenemill`: each command is one call into the library and a few lines that print the result.

Exit codes: 0 all done; 1 some scenes failed, the others are complete; 2 wrong usage or settings; 3 all done but scenes
in quarantine; 130 and 143 stopped by Ctrl-C and SIGTERM.
Libraries are imported in the commands that need them, so that `--help` is fast.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.table import Table

from pipeline import __version__
from pipeline.cli.console import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    ConfigFile,
    Crs,
    Overrides,
    PrintableConsole,
    console,
    escape,
    option_overrides,
    say,
    show_areas,
)
from pipeline.cli.merge import merge
from pipeline.cli.segment import catalog, segment
from pipeline.cli.training import evaluate, export_onnx, import_model, train
from pipeline.errors import ModelError, ScenemillError, SettingsError
from pipeline.text import escape_messages, printable, printable_traceback, without_secrets

app = App(
    name="scenemill",
    version=__version__,
    help="Segment large georeferenced scenes: seamless probability mosaics and whole polygons.",
    suppress_keyboard_interrupt=False,
    console=PrintableConsole(),
    error_console=console,
)
app.meta.suppress_keyboard_interrupt = False


@app.command
def vectorize(
    mosaic: Annotated[Path, Parameter(help="A probability.tif written by scenemill.")],
    *,
    out: Annotated[Path | None, Parameter(help=".gpkg, .parquet or .fgb; default: vectorized.gpkg next to it.")] = None,
    layer: Annotated[str | None, Parameter(help="Add or replace this layer of a .gpkg; its other layers stay.")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace an existing file, whatever it holds.")] = False,
    config: ConfigFile = None,
    overrides: Overrides = (),
) -> int:
    """Make polygons again from an existing mosaic, with other settings and without inference."""
    from pipeline.cli.progress import progress_bars, scene_progress
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.segment import vectorize_mosaic

    _check_exists(str(mosaic))
    if layer is not None and overwrite:
        raise SettingsError("--layer has no effect with --overwrite, which replaces the whole file; leave one out")
    spec = load_settings(SegmentSpec, config, overrides)
    target = out or mosaic.with_name("vectorized.gpkg")
    with progress_bars(console) as bars:
        progress = scene_progress(bars, mosaic.parent.name)
        totals = vectorize_mosaic(mosaic, target, spec=spec.polygons, layer=layer, overwrite=overwrite, watch=progress)
    say(f"{target}: {totals.count:,} polygons, {show_areas(totals.area_m2)}")
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
    """Describe a scene, checkpoint or mosaic, and check whether scene and model fit."""
    from pipeline.cli.inspect import inspect_path
    from pipeline.config import SegmentSpec, load_settings

    _check_exists(path)
    spec = load_settings(SegmentSpec, config, [*overrides, *option_overrides({"reading.crs": crs})])
    kind, facts = inspect_path(path, spec.reading, model=model)
    table = Table(show_header=False, box=None)
    for name, value in facts:
        table.add_row(f"[bold]{escape(name)}", escape(value))
    output = PrintableConsole()
    output.print(printable(f"{path}: {kind}"), markup=False, highlight=False, soft_wrap=True)
    output.print(table)
    return EXIT_SOME_FAILED if facts[-1][1].startswith("no:") else EXIT_DONE


for _command in (segment, catalog, merge, train, evaluate, import_model, export_onnx):
    app.command(_command)


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the scene and the results.")] = Path("demo-out"),
    size: Annotated[int, Parameter(help="Side of the generated scene in pixels, at least 256.")] = 4096,
    seed: Annotated[int, Parameter(help="Seed of the generated town.")] = 7,
) -> int:
    """Generate a town, segment it through the Prefect flow, and score the result against the reference."""
    from flows.demo import run_demo

    for line in run_demo(out, size=size, seed=seed):
        say(line)
    return EXIT_DONE


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative="", help="Show tracebacks and debug messages.")] = False,
) -> int:
    escape_messages()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if debug:
        logging.getLogger("pipeline").setLevel(logging.DEBUG)
    try:
        code = app(tokens, exit_on_error=False, result_action="return_value")
    except ScenemillError as error:
        if debug:
            _show_traceback()
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return EXIT_USAGE if isinstance(error, SettingsError | ModelError) else EXIT_SOME_FAILED
    except CycloptsError:
        raise
    except Exception as error:
        if debug:
            _show_traceback()
        problem = without_secrets(f"unexpected {type(error).__name__}: {error}")
        say(f"error: {problem}; --debug shows where, please report it")
        return EXIT_SOME_FAILED
    return code if isinstance(code, int) else EXIT_DONE


def _show_traceback() -> None:
    console.print(printable_traceback(), markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    try:
        with _sigterm_as_exception():
            code = app.meta(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        code = EXIT_USAGE
    except KeyboardInterrupt as stop:
        console.print("stopped; finished scenes are complete, run again to continue", highlight=False)
        code = EXIT_TERMINATED if isinstance(stop, _Terminated) else EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else EXIT_DONE)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: open files are closed, and `run.json` is written."""


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_exists(path: str) -> None:
    if "://" not in path and not Path(path).exists():
        raise SettingsError(f"{path}: no such file; check the path")
