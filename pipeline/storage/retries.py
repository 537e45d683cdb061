"""Retries of transient errors, after given pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.errors import AccessError, TransientError

Result = TypeVar("Result")


def is_transient(error: object) -> bool:
    """Whether a retry may succeed: an error of disk, network or workers, not of data or permissions."""
    return isinstance(error, TransientError) and not isinstance(error, AccessError)


def retry_transient(
    function: Callable[[], Result],
    pauses_s: Sequence[float],
    *,
    on_retry: Callable[[BaseException, float], None] = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """The result of `function`, called again after transient errors; raises the last of them, or any other error.

    Args:
        function: may be called several times.
        pauses_s: seconds before each retry; their number is the number of retries.
        on_retry: called with the error and the seconds until the next try.
        sleep: waits for a number of seconds.
    """
    for pause_s in pauses_s:
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
            on_retry(error, pause_s)
        sleep(pause_s)
    return function()
