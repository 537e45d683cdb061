"""Warnings left unsaid while several threads open rasters: `warnings.catch_warnings` alone serves one thread only.

rasterio warns of a raster without a place on the ground, which we answer with a refusal of our own. The filters of
warnings are the interpreter's: the first thread that wants silence sets them, and the last one puts them back.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio.errors import NotGeoreferencedWarning


class _Silence:
    """Who is silent at the moment, and what the filters were before."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """See `silent`."""
        with self._turn:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._inside += 1
        try:
            yield
        finally:
            with self._turn:
                self._inside -= 1
                if not self._inside:
                    self._filters.__exit__(None, None, None)
                    self._turn.notify_all()

    @contextmanager
    def kept_off(self) -> Iterator[None]:
        """See `undisturbed`."""
        with self._turn:
            self._turn.wait_for(lambda: not self._inside)
            yield


_SILENCE = _Silence()

silent = _SILENCE.shared
"""Context in which rasterio does not warn of rasters without georeferencing; any number of threads may be in it."""
undisturbed = _SILENCE.kept_off
"""Context for what changes the filters itself, one thread at a time: nobody is `silent` meanwhile."""
