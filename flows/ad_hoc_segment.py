"""`python -m flows.segment`: the flow over scenes, run once by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from prefect.client.schemas.objects import State

from flows.command_line import Overrides, run_flow
from pipeline.config import SegmentSpec
from pipeline.results import exit_code

SOURCES = "Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), STAC (.json, stac+), s3:// and https://."


def command(flow: Callable[..., State[Any]]) -> App:
    """The command of a flow, which is an argument: `python -m` runs its module, and an import would run it again."""
    app = App(
        name="python -m flows.segment", help="Run the flow segment-catalog once, with or without a Prefect server."
    )

    @app.default
    def run(
        *scenes: Annotated[str, Parameter(help=SOURCES)],
        model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
        out: Annotated[str, Parameter(help="Where the results go, a folder for each scene.")],
        config: Annotated[Path | None, Parameter(help="YAML of settings; see docs/guide/configuration.md.")] = None,
        overrides: Overrides = (),
        max_failures: Annotated[int | None, Parameter(help="End the run after this number of failed scenes.")] = None,
        retry_quarantined: Annotated[bool, Parameter(negative="", help="Try scenes in quarantine again.")] = False,
    ) -> int:
        """Exit code 0: all done; 1: something failed, see the log; 2: wrong usage or settings; 3: see quarantine."""
        given = [*scenes], [*map(str, model)], out

        def start(settings: SegmentSpec) -> State[Any]:
            return flow(
                *given,
                settings,
                max_failures=max_failures,
                retry_quarantined=retry_quarantined or None,
                return_state=True,
            )

        return run_flow(app, start, SegmentSpec, config, overrides, code=exit_code)

    return app
