"""A flow run once by hand: settings from a file and options, what is wrong with them in one line, an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter
from prefect.client.schemas.objects import State

from pipeline.config import load_settings
from pipeline.errors import ModelError, ScenemillError, SettingsError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

Settings = TypeVar("Settings")
Overrides = Annotated[tuple[str, ...], Parameter(name="--set", help="One setting as section.key=value.")]
Labels = Annotated[
    list[str],
    Parameter(help="Vector files or mask rasters, one for all scenes, or folders of them.", consume_multiple=True),
]


def run_flow(
    app: App,
    start: Callable[[Settings], State[Any]],
    kind: type[Settings],
    config: Path | None,
    overrides: tuple[str, ...],
    *,
    code: Callable[[Any], int] = lambda _: EXIT_DONE,
) -> int:
    """Start a flow with settings of a kind, unless they are wrong; Prefect's log tells the rest.

    Args:
        app: prints what is wrong.
        start: runs the flow with the settings as its parameter, and returns its final state.
        kind: the frozen dataclass of the settings.
        config: YAML file of settings.
        overrides: `section.key=value`, stronger than the file.
        code: the exit code for what a completed flow returned.
    """
    try:
        settings = load_settings(kind, config, overrides)
    except ScenemillError as error:
        app.error_console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_USAGE
    state = start(settings)
    if state.is_completed():
        return code(state.result())
    return EXIT_USAGE if isinstance(state.result(raise_on_failure=False), SettingsError | ModelError) else EXIT_FAILED
