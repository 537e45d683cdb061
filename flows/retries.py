"""Retries of tasks after transient errors, and failed states without a traceback."""

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

Params = ParamSpec("Params")
Result = TypeVar("Result")


def task_options(spec: RunSpec) -> dict[str, Any]:
    """Options of every task: transient errors of disk, network and workers are retried; results lie on the disk."""
    return {
        "retries": spec.retries,
        "retry_delay_seconds": [*spec.retry_policy.pauses_s],
        "retry_condition_fn": _is_transient_failure,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }


def _is_transient_failure(task: Any, run: TaskRun, state: State[Any]) -> bool:
    return is_transient(state.result(raise_on_failure=False))


def fail_without_traceback(body: Callable[Params, Result]) -> Callable[Params, Result]:
    """Decorate the body of a flow: a `ScenemillError` becomes the message of its failed state, without a traceback."""

    @wraps(body)
    def run(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return body(*args, **kwargs)
        except ScenemillError as error:
            # Prefect takes a returned State as the state of the run, and raises the error in it.
            return cast("Result", Failed(message=str(error), data=error))

    # Prefect reads the types of parameters from here, and would resolve their names in this module.
    run.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]
    return run
