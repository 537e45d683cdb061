"""Which faults are worth another try, how often, and after which pauses: one policy for the command and the flows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import AccessError, SettingsError, WorldError

MOST_RETRIES = 50
"""More pauses than these Prefect does not take for a task."""
LONGEST_PAUSE_S = 300.0
"""Pauses double up to this."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run over many scenes does about failures, and where it works; never changes a result."""

    retries: int = 3
    """How often a scene is tried again after a fault of disk, network or workers; faults of the data never are."""
    retry_delay_s: float = 2.0
    """Pause before the first retry, in seconds; each further one is twice as long, up to 300 s."""
    max_failures: int = 0
    """So many failed scenes end the run: those in work are finished, no other is begun. 0: no limit."""
    retry_quarantined: bool = False
    """Try scenes in quarantine again, though neither they nor model and settings have changed."""
    work_dir: str | None = None
    """Folder in which results for an object store are made before they are uploaded; None: a temporary one."""

    def __post_init__(self) -> None:
        if not 0 <= self.retries <= MOST_RETRIES:
            raise SettingsError(f"retries must be 0 to {MOST_RETRIES}, not {self.retries}")
        if not 0 <= self.retry_delay_s < math.inf:
            raise SettingsError(f"retry_delay_s must be at least 0 s and finite, not {self.retry_delay_s}")
        if self.max_failures < 0:
            raise SettingsError(f"max_failures must be at least 0 (no limit), not {self.max_failures}")

    @property
    def pauses_s(self) -> tuple[float, ...]:
        """Seconds before each retry, the same in every run.

        >>> RunSpec(retries=4, retry_delay_s=100).pauses_s
        (100.0, 200.0, 300.0, 300.0)
        """
        longest = max(LONGEST_PAUSE_S, float(self.retry_delay_s))
        return tuple(min(self.retry_delay_s * 2.0**retry, longest) for retry in range(self.retries))


def is_world_fault(error: object) -> bool:
    """Whether the same work may succeed later: a fault of disk, network or workers, not of data or permissions."""
    return isinstance(error, WorldError) and not isinstance(error, AccessError)


def retry_world_faults(
    work: Callable[[], Result],
    spec: RunSpec,
    *,
    tell: Callable[[BaseException, float], None] = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """What `work` returns, tried again after faults of the world; the last fault, or any other, is raised.

    Args:
        work: may run several times.
        spec: how often, and after which pauses.
        tell: told of a fault and the seconds until the next try.
        sleep: waits for so many seconds.
    """
    for pause_s in spec.pauses_s:
        try:
            return work()
        except Exception as error:
            if not is_world_fault(error):
                raise
            tell(error, pause_s)
        sleep(pause_s)
    return work()
