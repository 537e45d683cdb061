"""A cluster for benchmarks: `dask scheduler` and `dask worker`, as an operator starts them, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from types import TracebackType
from typing import Self

from distributed import Client

from pipeline.distribute.client import connect

ROOT = Path(__file__).parents[1]
SURROUNDINGS = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "DASK_LOGGING__DISTRIBUTED": "error",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
COMMON = ("--host", "127.0.0.1", "--no-dashboard")
WORKER = ("--nthreads", "2", "--no-nanny", "--memory-limit", "0", "--resources", "device=1")
PATIENCE = "120s"


class Processes:
    """A scheduler and workers of one thread, until the block ends."""

    def __init__(self, folder: Path) -> None:
        """Start the scheduler; processes keep their files in a folder inside this one."""
        self._ending = ExitStack()
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._file = self._folder / "scheduler.json"
        self._workers = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("dask_scheduler", "--port", "0")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def client(self, workers: int) -> Client:
        """A client, once `workers` workers are connected."""
        for _ in range(workers - self._workers):
            self._start("dask_worker", *WORKER, "--local-directory", str(self._folder))
        self._workers = workers
        with Client(scheduler_file=str(self._file), timeout=PATIENCE, set_as_default=False) as first:
            first.wait_for_workers(workers, timeout=PATIENCE)
            client = connect(first.scheduler.address)
        self._ending.callback(client.close)
        return client

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Suspend all processes: even idle ones wake up fifty times a second."""
        self._send(SIGSTOP)
        try:
            yield
        finally:
            self._send(SIGCONT)

    def _send(self, signal: Signals) -> None:
        for process in self._processes:
            process.send_signal(signal)

    def _start(self, module: str, *options: str) -> None:
        process = self._ending.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *COMMON, "--scheduler-file", self._file, *options],
                cwd=self._folder,
                env={**os.environ, **SURROUNDINGS},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        self._ending.callback(process.kill)
        self._processes.append(process)
