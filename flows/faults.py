"""What becomes of faults: those of the world are tried again, and ours end a flow in one paragraph."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

from pipeline.config import RunSpec
from pipeline.errors import ScenemillError
from pipeline.storage import is_transient

Given = ParamSpec("Given")
Result = TypeVar("Result")


def world_faults_retried(spec: RunSpec) -> dict[str, Any]:
    """Options of every task: what disk, network and workers spoil is tried again; results lie on the disk."""
    return {
        "retries": spec.retries,
        "retry_delay_seconds": [*spec.pauses_s],
        "retry_condition_fn": _failed_by_the_world,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }


def _failed_by_the_world(task: Any, run: TaskRun, state: State[Any]) -> bool:
    return is_transient(state.result(raise_on_failure=False))


def plainly(body: Callable[Given, Result]) -> Callable[Given, Result]:
    """A flow that fails with our own errors as they are: one paragraph that an operator can act on, no traceback."""

    @wraps(body)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return body(*args, **kwargs)
        except ScenemillError as error:
            # Prefect takes a returned State for the run's own, and raises what it holds.
            return cast("Result", Failed(message=str(error), data=error))

    # Prefect reads types of parameters from here, and would look up their names in this module.
    run.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]
    return run
