"""Errors of the Prefect server API: logged, never raised, because artifacts are not results."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.exceptions import PrefectException

log = logging.getLogger(__name__)


@contextmanager
def ignore_server_errors() -> Iterator[None]:
    """Log an error of the server or of the connection to it, and continue."""
    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.warning("the Prefect server could not be reached: %s", type(error).__name__)
