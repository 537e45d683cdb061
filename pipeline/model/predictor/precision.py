"""Number formats of a network: the candidates of a device, their torch types, and the result of checking one.

`pipeline.inference.precision_check.choose_precision` checks the candidates on the pixels of a scene.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import SettingsError

log = logging.getLogger(__name__)

Precision = Literal["auto", "exact", "float32", "mixed", "bfloat16", "float16"]
"""Number format of a network; `exact` is float32 without TF32, which on a CPU is the same as `float32`; `mixed` is
bfloat16 after two blocks that compute in float32."""
MAX_CHANGE = 0.01
"""A faster way to compute is used only if it changes no probability of its check by more."""


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck:
    """The precision chosen by running real tiles in it and in float32."""

    precision: str
    """`exact`, `float32`, `mixed`, `bfloat16` or `float16`."""
    change: float = 0.0
    """Largest change of a probability against float32, in the precision tried last; 0 if none was tried."""
    note: str = ""
    """Why `auto` fell back, in one sentence; empty when it did not."""

    def log_fallback(self, source: str) -> None:
        """Log why `auto` fell back, as a warning if to float32, which costs much speed."""
        if self.note:
            log.log(logging.WARNING if self.precision == "float32" else logging.INFO, "%s: %s", source, self.note)


def combine_checks(checks: Sequence[PrecisionCheck]) -> PrecisionCheck:
    """The precision in which several models run together: the most accurate of theirs.

    >>> combine_checks([PrecisionCheck(precision="bfloat16"), PrecisionCheck(precision="mixed")]).precision
    'mixed'
    """
    rank = {"exact": 0, "float32": 0, "mixed": 1}
    return min(checks, key=lambda check: (rank.get(check.precision, 2), -check.change))


def candidate_precisions(precision: Precision, device: torch.device, *, exported: bool) -> tuple[str, ...]:
    """The precision of the settings, or those that `auto` tries on a device, the fastest first.

    Args:
        precision: the setting.
        device: of the network.
        exported: True for an imported network, whose `auto` is float32.
    """
    if exported and precision == "mixed":
        raise SettingsError("inference.precision: mixed is for checkpoints of ours, not imported networks; use float32")
    if precision != "auto":
        return (precision,)
    fast = "float32" if exported else fastest_precision(device)
    return (fast,) if fast == "float32" else (fast, "mixed")


def fastest_precision(device: torch.device) -> str:
    """The number format that a device computes fastest in."""
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX-512 BF16)."""
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supports is not None and bool(supports())


def torch_dtype(precision: str) -> torch.dtype:
    """Type of weights and features in a precision; `mixed` has float32 in the first two blocks.

    >>> torch_dtype("exact"), torch_dtype("mixed")
    (torch.float32, torch.bfloat16)
    """
    dtype = {"exact": torch.float32, "mixed": torch.bfloat16}.get(precision) or getattr(torch, precision)
    assert isinstance(dtype, torch.dtype)
    return dtype
