"""The allocator hands out the same pages again, where it is glibc's, and is left alone elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from pipeline.inference.memory import disable_malloc_trim

ROUNDS = """
import resource, sys
import torch
from pipeline.inference.memory import disable_malloc_trim
if sys.argv[1] == "kept":
    assert disable_malloc_trim()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.zeros(16 * 2**20).add_(1)
before = faults()
for _ in range(10):
    torch.zeros(16 * 2**20).add_(1)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "plain")
    ]
    assert faults[0] < faults[1] / 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert disable_malloc_trim.__wrapped__() is False


HEAP = """
import sys
import torch
from pipeline.inference.memory import trim_heap, disable_malloc_trim
disable_malloc_trim()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
held = [torch.ones(2**20) for _ in range(64)]
kept = held[::8]
del held
full = resident()
trim_heap()
print(full - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_free_memory_between_what_is_held_goes_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True)
    full, left = map(int, done.stdout.split())
    assert left < full / 4
