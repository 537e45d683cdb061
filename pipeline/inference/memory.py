"""Allocator settings: keep glibc from returning memory to the system between two tiles.

A network on a CPU allocates tens of megabytes per layer and frees them at once. glibc maps and unmaps every such
block, so each layer's first access to each page is a page fault: a fifth to a third of the time of a small network.
With these settings glibc takes blocks from its heap and reuses freed pages.
"""

from __future__ import annotations

import ctypes
import functools
import logging

log = logging.getLogger(__name__)

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD, ARENA_MAX = -4, -1, -2, -8
"""M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX of glibc's malloc.h."""
MALLOC_OPTIONS = {
    MMAP_MAX: 0,  # no block is mapped separately, however large
    TRIM_THRESHOLD: 2**31 - 1,  # bytes free at the heap's end before any are returned
    TOP_PAD: 64 * 2**20,  # bytes more than needed whenever the heap grows
    ARENA_MAX: 1,  # the heaps of further threads are too small for such blocks, and each would keep its own
}


@functools.cache
def disable_malloc_trim() -> bool:
    """Set the allocator's options for work on a CPU; returns whether glibc accepted them.

    The process then keeps its peak memory until `trim_heap`. No effect with another C library (musl, macOS, Windows).
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        taken = [library.mallopt(key, value) for key, value in MALLOC_OPTIONS.items()]
    except (AttributeError, TypeError, OSError):
        return False
    if not all(taken):
        log.debug("glibc refused some of its settings: %s", taken)
    return all(taken)


def trim_heap() -> None:
    """Return free memory of the whole heap to the system, before other work starts."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
