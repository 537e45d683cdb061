"""Which faults are worth another try, how often, and after which pauses: one policy for the command and the flows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.errors import AccessError, TransientError

Result = TypeVar("Result")


def is_transient(error: object) -> bool:
    """Whether the same work may succeed later: a fault of disk, network or workers, not of data or permissions."""
    return isinstance(error, TransientError) and not isinstance(error, AccessError)


def retry_transient(
    work: Callable[[], Result],
    pauses_s: Sequence[float],
    *,
    on_retry: Callable[[BaseException, float], None] = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """What `work` returns, tried again after faults of the world; the last fault, or any other, is raised.

    Args:
        work: may run several times.
        pauses_s: seconds before each further try, as many as there may be.
        on_retry: called with a fault and the seconds until the next try.
        sleep: waits for so many seconds.
    """
    for pause_s in pauses_s:
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            on_retry(error, pause_s)
        sleep(pause_s)
    return work()
