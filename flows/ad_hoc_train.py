"""`python -m flows.train`: a training, run once by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from prefect.client.schemas.objects import State

from flows.command_line import Labels, Overrides, run_flow
from pipeline.training import TrainSpec


def command(flow: Callable[..., State[Any]]) -> App:
    """The command of a flow, which is an argument: `python -m` runs its module, and an import would run it again."""
    app = App(name="python -m flows.train", help="Run the flow train-network once, with or without a Prefect server.")

    @app.default
    def run(
        *,
        images: Annotated[list[str], Parameter(help="Scenes, or folders of scenes.", consume_multiple=True)],
        labels: Labels,
        out: Annotated[Path, Parameter(help="Checkpoint to write, *.safetensors.")],
        config: Annotated[Path | None, Parameter(help="YAML file of settings; see configs/train.yaml.")] = None,
        overrides: Overrides = (),
    ) -> int:
        """Exit code 0: trained; 1: it failed or diverged, the log says why; 2: wrong usage or settings."""

        def start(settings: TrainSpec) -> State[Any]:
            return flow(images, labels, str(out), settings, return_state=True)

        return run_flow(app, start, TrainSpec, config, overrides)

    return app
