"""How many processors there are to use."""

from __future__ import annotations

import os


def usable_cpus() -> int:
    """CPUs that this process may use, which containers and `taskset` bound."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
