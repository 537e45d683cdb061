"""What watches over a worker process of this machine: it replaces one that dies, and ends one at once.

dask asks a worker to close and waits 4 s for the region that it has in hand, which nobody wants any more: results of a
run that came to its end have been fetched, and those of one that is stopped are begun again.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any, ClassVar

from distributed import Nanny


class KillingNanny(Nanny):
    """A nanny whose process need not agree to its end; each cluster has a subclass of its own."""

    members: ClassVar[list[KillingNanny]]
    """Those of a cluster, from before their processes start."""

    def __init_subclass__(cls) -> None:
        cls.members = []

    def __init__(self, *given: Any, **options: Any) -> None:
        """See `Nanny`."""
        super().__init__(*given, **options)
        self.members.append(self)

    def strike(self) -> None:
        """Kill the process if it is there, from any thread."""
        if (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @classmethod
    def strike_all(cls) -> None:
        """Kill all processes of the cluster that are there."""
        for each in cls.members:
            each.strike()

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        """End the process."""
        self.strike()
        await super().kill(timeout, reason)


def own_nanny() -> type[KillingNanny]:
    """A class for one cluster."""

    class Own(KillingNanny):
        """The nannies of one cluster."""

    return Own
