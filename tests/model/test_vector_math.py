"""The kernels of the CPU's vector math are chosen in one thread, before networks run in several."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pipeline.model.networks.vector_math import FUNCTIONS

RECORD = """
import functools, threading, torch
called = {}
def recorded(name, function):
    @functools.wraps(function)
    def call(numbers):
        called.setdefault((name, numbers.dtype), threading.current_thread() is threading.main_thread())
        return function(numbers)
    return call
for name in %r:
    setattr(torch, name, recorded(name, getattr(torch, name)))
import %s
print(len(called), all(called.values()))
"""


@pytest.mark.parametrize(
    "module", ["pipeline.model.predictor.compiled", "pipeline.inference.engine, pipeline.training.trainer"]
)
def test_every_function_is_called_once_by_whoever_imports_what_runs_networks(module: str) -> None:
    code = RECORD % (FUNCTIONS, module)
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert found.stdout.split() == [str(2 * len(FUNCTIONS)), "True"]


def test_each_function_takes_numbers_of_its_domain() -> None:
    numbers = torch.full((64,), 0.5)

    assert all(getattr(torch, name)(numbers).isfinite().all() for name in FUNCTIONS)
