"""NotGeoreferencedWarning is suppressed for many threads at once, until the last one leaves."""

from __future__ import annotations

import threading
import warnings
from contextlib import ExitStack

import pytest
from rasterio.errors import NotGeoreferencedWarning

from pipeline.storage.gdal import exclusive_warning_filters, suppress_georef_warnings


def warns() -> bool:
    """Whether rasterio's warning is raised, here as an error."""
    try:
        warnings.warn("no place", NotGeoreferencedWarning, stacklevel=1)
    except NotGeoreferencedWarning:
        return True
    return False


def test_the_warning_is_suppressed_until_the_last_thread_has_left() -> None:
    before = warnings.filters
    first, second = ExitStack(), ExitStack()
    first.enter_context(suppress_georef_warnings())
    second.enter_context(suppress_georef_warnings())
    assert not warns()
    first.close()  # not the one that came last: their blocks need not be nested
    assert not warns()
    second.close()
    assert warns()
    assert warnings.filters is before


def test_an_exception_restores_the_warning_filters() -> None:
    with pytest.raises(KeyError), suppress_georef_warnings():
        raise KeyError
    assert warns()


def test_exclusive_filters_wait_until_no_thread_suppresses_the_warning() -> None:
    entered, recorded = threading.Event(), []

    def catch() -> None:
        entered.set()
        with exclusive_warning_filters(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("no place", NotGeoreferencedWarning, stacklevel=1)
            recorded.extend(caught)

    with suppress_georef_warnings():
        thread = threading.Thread(target=catch)
        thread.start()
        assert entered.wait(10)
        thread.join(0.05)
        assert thread.is_alive()
        assert not recorded
    thread.join(10)
    assert len(recorded) == 1
