"""Vector math of the CPU: one thread resolves the kernel of every function, before several can call it.

oneMKL chooses the kernel of `exp`, `log`, `sqrt`, ... on the first call of each. Where two threads make that call at
once, one of them can get the kernel of low accuracy for its whole tensor: relative errors of 1e-4 in the first tiles
of a process, and other bytes than in the next run (pytorch/pytorch issue 188792; oneMKL before 2025.0). The import of
this module calls every function once; Python imports a module in one thread only.
"""

from __future__ import annotations

import torch

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "cosh", "sin", "sinh", "tan", "tanh"),
    *("exp", "expm1", "log", "log10", "log1p", "log2", "sqrt", "erf", "erfc", "erfinv", "lgamma", "trunc"),
)
"""Functions of torch that it computes with oneMKL on contiguous floats."""


def resolve_kernels() -> None:
    """Call each of `FUNCTIONS` in both number formats that oneMKL has; takes 20 ms."""
    for dtype in (torch.float32, torch.float64):
        numbers = torch.full((64,), 0.5, dtype=dtype)
        for name in FUNCTIONS:
            getattr(torch, name)(numbers)


resolve_kernels()
