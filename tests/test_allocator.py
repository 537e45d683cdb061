"""The allocator hands out the same pages again, where it is glibc's, and is left alone elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from pipeline.allocator import keep_memory

ROUNDS = """
import resource, sys
import torch
from pipeline.allocator import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
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
    assert faults[0] < faults[1] / 4


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert keep_memory.__wrapped__() is False
