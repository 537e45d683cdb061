"""`python -m flows.evaluate`: an evaluation, run once by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from prefect.client.schemas.objects import State

from flows.command_line import Labels, Overrides, run_flow
from pipeline.evaluation import EvaluateSpec


def command(flow: Callable[..., State[Any]]) -> App:
    """The command of a flow, which is an argument: `python -m` runs its module, and an import would run it again."""
    app = App(
        name="python -m flows.evaluate", help="Run the flow evaluate-scenes once, with or without a Prefect server."
    )

    @app.default
    def run(
        *scenes: Annotated[str, Parameter(help="Files, folders, globs, or s3:// and https:// addresses.")],
        labels: Labels,
        out: Annotated[Path, Parameter(help="Folder of the evaluation.")],
        model: Annotated[list[Path] | None, Parameter(help="Checkpoint to evaluate; several: the mean of all.")] = None,
        mosaics: Annotated[Path | None, Parameter(help="Folder of a run, or one probability.tif.")] = None,
        polygons: Annotated[Path | None, Parameter(help="Vector file, folder of them, or folder of a run.")] = None,
        config: Annotated[Path | None, Parameter(help="YAML file of settings; see configs/evaluate.yaml.")] = None,
        overrides: Overrides = (),
    ) -> int:
        """Exit code 0: all evaluated; 1: something failed, the log says what; 2: wrong usage or settings."""
        given = {
            name: str(path) for name, path in {"mosaics": mosaics, "polygons": polygons}.items() if path is not None
        }
        models = None if model is None else [*map(str, model)]

        def start(settings: EvaluateSpec) -> State[Any]:
            return flow([*scenes], labels, str(out), models, settings=settings, return_state=True, **given)

        return run_flow(app, start, EvaluateSpec, config, overrides)

    return app
