"""Nanny process of a local worker: restarts a worker that dies, and kills it at once on shutdown.

dask asks a worker to close and waits 4 s for its running region. That region is not needed: a run that ended has all
results, and a run that was stopped computes it again.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any, ClassVar

from distributed import Nanny


class KillingNanny(Nanny):
    """A nanny that kills its process without waiting; each cluster has its own subclass."""

    members: ClassVar[list[KillingNanny]]
    """The nannies of a cluster, also those whose process has not started yet."""

    def __init_subclass__(cls) -> None:
        cls.members = []

    def __init__(self, *args: Any, **options: Any) -> None:
        """See `Nanny`."""
        super().__init__(*args, **options)
        self.members.append(self)

    def kill_process(self) -> None:
        """Kill the process if it runs; callable from any thread."""
        if (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @classmethod
    def kill_all(cls) -> None:
        """Kill all running processes of the cluster."""
        for nanny in cls.members:
            nanny.kill_process()

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        """Kill the process, then clean up as `Nanny` does."""
        # `Nanny` would first wait for the process to end by itself.
        self.kill_process()
        await super().kill(timeout, reason)


def new_nanny_class() -> type[KillingNanny]:
    """A subclass for one cluster, with its own list of members."""

    class Own(KillingNanny):
        """The nannies of one cluster."""

    return Own
