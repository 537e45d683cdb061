"""Clusters for tests: inside this process, or a scheduler and workers that are processes of their own on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from distributed import Client

ROOT = Path(__file__).parents[2]
SCHEDULER = """
import asyncio, sys
from distributed import Scheduler
async def run():
    options = {"port": 0, "dashboard": False, "dashboard_address": ":0"}
    async with Scheduler(host=sys.argv[1], protocol=sys.argv[2], **options) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()
asyncio.run(run())
"""
WORKER = """
import asyncio, sys
from distributed import Worker
async def run():
    options = {"nthreads": 2, "resources": {"device": 1}, "memory_limit": 0, "dashboard": False}
    async with Worker(sys.argv[1], host=sys.argv[2], **options) as worker:
        print(worker.address, flush=True)
        await worker.finished()
asyncio.run(run())
"""


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """A client of a cluster inside this process: one worker with three threads and one device."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=3, processes=False, dashboard_address=":0", resources={"device": 1}
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


class RealCluster:
    """A scheduler and the workers that were added to it."""

    def __init__(
        self,
        processes: ExitStack,
        host: str = "127.0.0.1",
        *,
        protocol: str = "tcp",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the scheduler; `environment` is added to that of all its processes."""
        self._processes, self._host, self._environment = processes, host, environment or {}
        self.scheduler, self.address = self._start(SCHEDULER, host, protocol)
        self.workers: list[subprocess.Popen[str]] = []

    def add(self, count: int = 1, *, host: str | None = None, **how: Any) -> Self:
        """Start workers; see `_start` for how."""
        for _ in range(count):
            process, _ = self._start(WORKER, self.address, host or self._host, **how)
            self.workers.append(process)
        return self

    def _start(
        self,
        code: str,
        *arguments: str,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: Path = ROOT,
    ) -> tuple[subprocess.Popen[str], str]:
        """Start a process that says its address.

        Args:
            code: what it runs.
            arguments: of the code.
            before: the command that starts it, e.g. `unshare`.
            environment: variables that differ from ours.
            folder: its working folder.
        """
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        surroundings = {**os.environ, **paths, **self._environment}
        process = self._processes.enter_context(
            subprocess.Popen(
                [*before, sys.executable, "-c", code, *arguments],
                cwd=folder,
                env={**surroundings, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        self._processes.callback(process.kill)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()


@contextmanager
def real_cluster(workers: int = 0, **how: Any) -> Iterator[RealCluster]:
    """Yield a cluster whose processes end with the block; see `RealCluster` for how."""
    with ExitStack() as processes:
        yield RealCluster(processes, **how).add(workers)
