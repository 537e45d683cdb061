"""Retries of transient errors: which errors are retried, how often, and after which pauses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import AccessError, TransientError

Result = TypeVar("Result")

TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which pauses, an operation is retried."""

    pauses_s: tuple[float, ...]
    """Seconds before each retry; their number is the number of retries."""

    @classmethod
    def exponential(cls, retries: int, first_s: float, *, max_s: float = math.inf) -> RetryPolicy:
        """Pauses that double up to `max_s`.

        >>> RetryPolicy.exponential(4, 100.0, max_s=300.0).pauses_s
        (100.0, 200.0, 300.0, 300.0)
        """
        return cls(tuple(min(first_s * 2.0**retry, max(max_s, first_s)) for retry in range(retries)))

    @property
    def attempts(self) -> int:
        """Number of tries, the first one included."""
        return len(self.pauses_s) + 1


REQUEST_RETRIES = RetryPolicy.exponential(4, 0.5)
"""Retries of each request to a web server or object store: ours, GDAL's and boto3's."""


def is_transient(error: object) -> bool:
    """Whether a retry may succeed: an error of disk, network or workers, not of data or permissions."""
    return isinstance(error, TransientError) and not isinstance(error, AccessError)


def retry_transient(
    function: Callable[[], Result],
    policy: RetryPolicy,
    *,
    on_retry: Callable[[BaseException, float], None] = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """The result of `function`, called again after transient errors; raises the last of them, or any other error.

    Args:
        function: may be called several times.
        policy: the retries.
        on_retry: called with the error and the seconds until the next try.
        sleep: waits for a number of seconds.
    """
    for pause_s in policy.pauses_s:
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
            on_retry(error, pause_s)
        sleep(pause_s)
    return function()
