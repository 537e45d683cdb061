"""Command lines of the flows, `python -m flows.segment|train|evaluate`: one run, with or without a Prefect server.

Each function takes its flow as an argument: `python -m` runs the flow's module, and an import would run it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError

from pipeline.config import SegmentSpec, load_settings
from pipeline.errors import ModelError, ScenemillError, SettingsError
from pipeline.evaluation import EvaluateSpec
from pipeline.results import exit_code
from pipeline.training import TrainSpec

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
UNAUTHORIZED, FORBIDDEN = 401, 403

Settings = TypeVar("Settings")
Flow = Callable[..., State[Any]]
Overrides = Annotated[tuple[str, ...], Parameter(name="--set", help="One setting as section.key=value.")]
Labels = Annotated[
    list[str],
    Parameter(help="Vector files or mask rasters, one for all scenes, or folders of them.", consume_multiple=True),
]
SOURCES = "Files, folders, globs, lists (.txt), tables (.csv, .gpkg, ...), STAC (.json, stac+), s3:// and https://."


def segment_command(flow: Flow) -> App:
    """The command of the flow over scenes."""
    app = _app("segment", "segment-catalog")

    @app.default
    def run(
        *scenes: Annotated[str, Parameter(help=SOURCES)],
        model: Annotated[list[Path], Parameter(help="Checkpoint (.safetensors) to run; several: the mean of all.")],
        out: Annotated[str, Parameter(help="Where the results go, a folder for each scene.")],
        config: Annotated[Path | None, Parameter(help="YAML of settings; see docs/guide/configuration.md.")] = None,
        overrides: Overrides = (),
        max_failures: Annotated[int | None, Parameter(help="End the run after n failed scenes.")] = None,
        retry_quarantined: Annotated[bool, Parameter(negative="", help="Try scenes in quarantine again.")] = False,
    ) -> int:
        """Exit code 0: all done; 1: something failed, see the log; 2: wrong usage or settings; 3: see quarantine."""

        def start(settings: SegmentSpec) -> State[Any]:
            models, retry = [*map(str, model)], retry_quarantined or None
            return flow([*scenes], models, out, settings, None, max_failures, retry, return_state=True)

        return _run(app, lambda: load_settings(SegmentSpec, config, overrides), start, exit_code)

    return app


def train_command(flow: Flow) -> App:
    """The command of the training flow."""
    app = _app("train", "train-network")

    @app.default
    def run(
        *,
        images: Annotated[list[str], Parameter(help="Scenes, or folders of scenes.", consume_multiple=True)],
        labels: Labels,
        out: Annotated[Path, Parameter(help="Checkpoint to write, *.safetensors.")],
        config: Annotated[Path | None, Parameter(help="YAML file of settings; see configs/train.yaml.")] = None,
        overrides: Overrides = (),
    ) -> int:
        """Exit code 0: trained; 1: it failed or diverged, see the log; 2: wrong usage or settings."""

        def start(settings: TrainSpec) -> State[Any]:
            return flow(images, labels, str(out), settings, return_state=True)

        return _run(app, lambda: load_settings(TrainSpec, config, overrides), start)

    return app


def evaluate_command(flow: Flow) -> App:
    """The command of the evaluation flow."""
    app = _app("evaluate", "evaluate-scenes")

    @app.default
    def run(
        *scenes: Annotated[str, Parameter(help="Files, folders, globs, or s3:// and https:// addresses.")],
        labels: Labels,
        out: Annotated[Path, Parameter(help="Folder of the evaluation.")],
        model: Annotated[list[str] | None, Parameter(help="Checkpoint to evaluate; several: the mean of all.")] = None,
        mosaics: Annotated[str | None, Parameter(help="Folder of a run, or one probability.tif.")] = None,
        polygons: Annotated[str | None, Parameter(help="Vector file, folder of them, or folder of a run.")] = None,
        config: Annotated[Path | None, Parameter(help="YAML file of settings; see configs/evaluate.yaml.")] = None,
        overrides: Overrides = (),
    ) -> int:
        """Exit code 0: all evaluated; 1: something failed, see the log; 2: wrong usage or settings."""

        def start(settings: EvaluateSpec) -> State[Any]:
            return flow([*scenes], labels, str(out), model, mosaics, polygons, settings, return_state=True)

        return _run(app, lambda: load_settings(EvaluateSpec, config, overrides), start)

    return app


def _app(module: str, flow: str) -> App:
    help_text = f"Run the flow {flow} once, with or without a Prefect server."
    return App(name=f"python -m flows.{module}", help=help_text)


def _run(
    app: App,
    load: Callable[[], Settings],
    start: Callable[[Settings], State[Any]],
    code: Callable[[Any], int] = lambda _: EXIT_DONE,
) -> int:
    """Load the settings, run a flow, and map its final state to an exit code; `code` maps a completed flow's result."""
    try:
        state = start(load())
    except ScenemillError as error:
        return _refuse(app, str(error))
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status not in (UNAUTHORIZED, FORBIDDEN):
            raise
        return _refuse(
            app,
            f"the Prefect server refuses this process ({status}); set PREFECT_API_AUTH_STRING to the user and password "
            "that the server has in PREFECT_SERVER_API_AUTH_STRING",
        )
    if state.is_completed():
        return code(state.result())
    return EXIT_USAGE if isinstance(state.result(raise_on_failure=False), SettingsError | ModelError) else EXIT_FAILED


def _refuse(app: App, reason: str) -> int:
    """Print why nothing was started."""
    app.error_console.print(f"error: {reason}", markup=False, highlight=False, soft_wrap=True)
    return EXIT_USAGE
