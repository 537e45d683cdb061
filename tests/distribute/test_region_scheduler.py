"""Regions are submitted a few at a time, and none stays on the cluster when the caller is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed.scheduler import KilledWorker

from pipeline.distribute import scheduler as scheduler_module
from pipeline.distribute.scheduler import RegionScheduler
from pipeline.distribute.worker_tasks import TaskResult
from pipeline.errors import TransientError
from pipeline.inference.tiling.regions import Region, plan_regions
from pipeline.inference.tiling.tiles import Tiling, plan_tiles

WORKERS = 3
REGIONS = plan_regions(plan_tiles((900, 40), Tiling(tile_size=32, overlap=0)), rows=20)


class Task:
    """A task that ends as soon as its result is asked for."""

    def __init__(self, key: str, region: Region, error: Exception | None, running: dict[str, Task]) -> None:
        self.key, self._region, self._error, self._running = key, region, error, running

    def add_done_callback(self, call: Callable[[Task], None]) -> None:
        call(self)

    def result(self) -> TaskResult[Any]:
        del self._running[self.key]
        if self._error is not None:
            raise self._error
        return TaskResult(value=SimpleNamespace(region=self._region), files={})


class CountingClient:
    """A cluster that counts the tasks on it."""

    status = "running"

    def __init__(self, fails_at: int | None = None, kills: Mapping[int, int] | None = None) -> None:
        """Regions at `kills` lose their worker as often as it says."""
        self.running: dict[str, Task] = {}
        self.cancelled: set[str] = set()
        self.most = 0
        self.together: list[tuple[int, int]] = []
        self._fails_at, self._kills = fails_at, dict(kills or {})

    def scheduler_info(self, n_workers: int = 0) -> dict[str, Any]:
        return {"workers": {k: {"resources": {}, "nthreads": 1} for k in range(WORKERS)}}

    def submit(self, function: object, content: bytes, region: Region, *, key: str, **_: object) -> Task:
        error: Exception | None = TransientError("the disk is full") if region.index == self._fails_at else None
        if self._kills.get(region.index, 0) > 0:
            self._kills[region.index] -= 1
            error = KilledWorker(key, cast("Any", SimpleNamespace(address="tcp://b:1")), 1)
        self.running[key] = Task(key, region, error, self.running)
        self.most = max(self.most, len(self.running))
        self.together.append((region.index, len(self.running)))
        return self.running[key]

    def cancel(self, tasks: list[Task]) -> None:
        self.cancelled |= {task.key for task in tasks}


@pytest.fixture(autouse=True)
def without_rasters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "restore_quicklook", lambda result, folder: result)


def run(client: CountingClient) -> Any:
    job: Any = SimpleNamespace(scene=SimpleNamespace(id="town", location="town.tif"), folder=Path())
    cluster: Any = client
    return RegionScheduler(cluster, None, None).run(job, REGIONS, None)  # type: ignore[arg-type]


def test_no_more_than_two_regions_per_worker_are_on_the_cluster() -> None:
    client = CountingClient()
    assert sorted(result.region.index for result in run(client)) == list(range(20))
    assert client.most == 2 * WORKERS
    assert not client.cancelled


def test_a_caller_that_stops_leaves_no_region_on_the_cluster() -> None:
    client = CountingClient()
    results = run(client)
    next(results)
    assert client.running
    results.close()
    assert client.running.keys() <= client.cancelled


def test_a_region_that_fails_takes_the_others_off_the_cluster() -> None:
    client = CountingClient(fails_at=4)
    with pytest.raises(TransientError, match="the disk is full"):
        list(run(client))
    assert client.running
    assert client.running.keys() <= client.cancelled


def test_regions_that_lost_their_workers_are_tried_again_alone() -> None:
    client = CountingClient(kills={3: 1, 4: 1, 17: 1})
    assert sorted(result.region.index for result in run(client)) == list(range(20))
    assert client.together[20:] == [(3, 1), (4, 1), (17, 1)]


def test_a_region_that_loses_its_worker_when_alone_ends_the_scene_by_its_rows() -> None:
    client = CountingClient(kills={3: 1, 4: 2, 17: 1})
    with pytest.raises(TransientError, match=r"the region of rows \d+ to \d+"):
        list(run(client))
