"""A Prefect server that is away costs a picture, never a result."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.exceptions import PrefectException

log = logging.getLogger(__name__)


@contextmanager
def unless_away() -> Iterator[None]:
    """Go on when the server cannot be told."""
    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError) as error:
        log.warning("the Prefect server was not told: %s", type(error).__name__)
