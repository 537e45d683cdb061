"""What a cluster says of itself, and which of its errors mean that it is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from distributed import CancelledError
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError

from pipeline.distribute.client import (
    TaskQueue,
    device_resource,
    is_lost,
    threads_of,
    translate_worker_errors,
    workers_of,
)
from pipeline.errors import TransientError


def client(*workers: dict[str, Any], status: str = "running") -> Any:
    cancelled: list[Any] = []
    return SimpleNamespace(
        status=status,
        cancelled=cancelled,
        cancel=cancelled.extend,
        scheduler_info=lambda n_workers: {"workers": dict(enumerate(workers))},
        submit=lambda *_, **__: SimpleNamespaceWithHash(),
    )


class SimpleNamespaceWithHash:
    def add_done_callback(self, call: object) -> None:
        """Never done."""


WITH_DEVICE, WITHOUT = {"resources": {"device": 1}, "nthreads": 2}, {"resources": {}, "nthreads": 4}


@pytest.mark.parametrize(
    ("workers", "count", "threads", "resource"),
    [
        ([], 1, 1, None),
        ([WITHOUT, WITHOUT], 2, 8, None),
        ([WITH_DEVICE, WITHOUT, WITHOUT], 1, 10, {"device": 1}),
        ([WITH_DEVICE, WITH_DEVICE], 2, 4, {"device": 1}),
    ],
)
def test_workers_with_a_device_are_those_that_count_if_there_are_any(
    workers: list[dict[str, Any]], count: int, threads: int, resource: dict[str, int] | None
) -> None:
    found = client(*workers)
    assert (workers_of(found), threads_of(found), device_resource(found)) == (count, threads, resource)


@pytest.mark.parametrize(
    ("status", "lost"), [("running", False), ("connecting", False), ("closing", True), ("closed", True)]
)
def test_a_cluster_is_lost_as_soon_as_its_client_closes(status: str, lost: bool) -> None:
    assert is_lost(client(status=status)) is lost


@pytest.mark.parametrize(("status", "cancelled"), [("running", 1), ("closing", 0), ("closed", 0)])
def test_tasks_are_cancelled_on_a_cluster_that_is_still_there(status: str, cancelled: int) -> None:
    """A request to a cluster that is gone would fail, and hide the error that ended the run."""
    found = client(WITHOUT)
    tasks: TaskQueue[None] = TaskQueue(found)
    tasks.submit(print, name="task", device=False)
    found.status = status
    tasks.cancel()
    assert len(found.cancelled) == cancelled


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FutureCancelledError("task", "scheduler-connection-lost"), "the region was lost with its cluster"),
        (FutureCancelledError("task", "lost dependencies"), "the region was cancelled by the cluster"),
        (CancelledError("task"), "the region was cancelled by the cluster"),
        (CommClosedError("closed"), "the region was lost with its cluster"),
    ],
)
def test_the_end_of_a_task_says_whether_the_cluster_is_still_there(error: Exception, message: str) -> None:
    with pytest.raises(TransientError, match=message), translate_worker_errors("the region"):
        raise error
