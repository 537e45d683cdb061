"""Keep the C library from giving memory back to the system between two tiles.

A network on a CPU asks for tens of megabytes per layer and frees them at once. glibc maps every such block anew
and unmaps it, so each layer's first touch of each page is a fault of the kernel's: a fifth to a third of the time
of a small network. Told to take blocks from its heap and to keep what is freed, it hands out the same pages again.
"""

from __future__ import annotations

import ctypes
import functools
import logging

log = logging.getLogger(__name__)

MAP_AT_MOST, TRIM_ABOVE, GROW_BY, ARENAS = -4, -1, -2, -8
"""M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX of glibc's malloc.h."""
CHOICES = {
    MAP_AT_MOST: 0,  # no block of its own mapping, however large
    TRIM_ABOVE: 2**31 - 1,  # bytes free at the heap's end before any go back
    GROW_BY: 64 * 2**20,  # bytes more than needed whenever the heap grows
    ARENAS: 1,  # the heaps of further threads are too small for such blocks, and each would keep its own
}


@functools.cache
def disable_malloc_trim() -> bool:
    """Set up the process's allocator for work on a CPU; returns whether it could be.

    The process then holds the most memory it ever needed, until `trim_heap`. Another C library (musl, macOS, Windows)
    is left alone.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        taken = [library.mallopt(key, value) for key, value in CHOICES.items()]
    except (AttributeError, TypeError, OSError):
        return False
    if not all(taken):
        log.debug("glibc refused some of its settings: %s", taken)
    return all(taken)


def trim_heap() -> None:
    """Hand what is free back to the system, wherever in the heap it lies, before another kind of work begins."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
