"""Where tests write: into memory, where it has room, as much of what they wait for is the flush of a disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 4 * 2**30
"""Several times what all tests leave at once."""


def pytest_configure(config: pytest.Config) -> None:
    """Files for the time being go into memory, ours and those of our processes; `TMPDIR` says otherwise."""
    if "TMPDIR" not in os.environ and _has_free_space():
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # found anew


def _has_free_space() -> bool:
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        return False
    return min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available // 2) > MIN_FREE_BYTES
