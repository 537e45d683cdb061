"""What a predictor is, plain or prepared, and the forms in which all are called.

A predictor is any callable `(N, bands, H, W) float32 -> (N, classes, h, w)`: a loaded checkpoint, a torch
module, or a plain function on numpy arrays or tensors. A loaded one is `LoadedModel`: it knows its card, proves
a number format on real tiles, and hands out a form of itself that is `Runnable` for batches in that format.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.predictor.compiled import BatchShape, activate

log = logging.getLogger(__name__)

Precision = Literal["auto", "exact", "float32", "mixed", "bfloat16", "float16"]
"""How numbers are held; `exact` is float32 without TF32, which on a CPU is the same as `float32`; `mixed` is
bfloat16 after two blocks that compute in float32."""
Augment = Literal["none", "flips", "rotations", "all"]
"""Symmetries of a tile that results are averaged over; `averaging` carries it out."""


class Predictor(Protocol):
    """What runs a network: normalised tiles in, probabilities (or the card's logits) out."""

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` float32 -> `(N, classes, H - 2 margin, W - 2 margin)`."""
        ...


@runtime_checkable
class Runnable(Protocol):
    """A network in one number format, ready for batches; many threads may call it at once on a CPU."""

    dtype: torch.dtype
    """Format of the tiles it takes without converting them."""
    layout: torch.memory_format
    """Memory order of the tiles it takes without rearranging them."""
    device: torch.device
    """Where it runs."""

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` normalised tiles -> `(N, classes, h, w)` probabilities, float32 in 0..1.

        Tiles in contiguous float32 are accepted too.
        """
        ...


@runtime_checkable
class LoadedModel(Protocol):
    """A model with its card on one device; what `load_predictor` returns."""

    card: ModelCard
    """What goes in and comes out."""
    device: torch.device
    """Where it runs."""
    lock: threading.Lock
    """Held while a scene uses the device: of several scenes in one process, one at a time does."""

    @property
    def identity(self) -> str:
        """What decides its results and is known before any work: weights, precision asked for, kind of device."""
        ...

    @property
    def members(self) -> tuple[LoadedModel, ...]:
        """The models whose probabilities are averaged; of a single model, itself."""
        ...

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> probabilities; the first call proves the precision."""
        ...

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """Choose the precision on real tiles, `(N, bands, H, W)` normalised float32."""
        ...

    def runnable(self, work: BatchShape) -> Runnable:
        """The model in the precision of a proof, ready for so much work."""
        ...


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck:
    """The precision that a trial on real tiles chose."""

    precision: str
    """`exact`, `float32`, `mixed`, `bfloat16` or `float16`."""
    change: float = 0.0
    """Largest change of a probability against float32 on the trial, in the precision tried last; 0 if none was."""
    note: str = ""
    """Why `auto` stepped back, in one sentence; empty when it did not."""

    def log_fallback(self, place: str) -> None:
        """Log that `auto` stepped back, and of what: as a warning where that costs much speed."""
        if self.note:
            log.log(logging.WARNING if self.precision == "float32" else logging.INFO, "%s: %s", place, self.note)


def combine_checks(proofs: Sequence[PrecisionCheck]) -> PrecisionCheck:
    """The precision in which several models run together: that of the most cautious.

    >>> combine_checks([Proof(precision="bfloat16", change=0.002), Proof(precision="mixed")]).precision
    'mixed'
    """
    caution = {"exact": 0, "float32": 0, "mixed": 1}
    return min(proofs, key=lambda proof: (caution.get(proof.precision, 2), -proof.change))


ArrayFunction = Callable[[NDArray[np.float32]], NDArray[np.floating] | Tensor]
"""A plain predictor on numpy arrays; one on torch tensors is recognised when it refuses arrays."""


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    """How the network is run."""

    batch_size: int = 0
    """Tiles per forward pass; 0 chooses by tile size and device."""
    precision: Precision = "auto"
    """Number format of the network; auto takes bfloat16 or float16 where fast and harmless, else float32."""
    augment: Augment = "none"
    """Average over mirrored (`flips`: 4 passes per tile), turned (`rotations`: 4) or all laid tiles (`all`: 8)."""
    device: str | tuple[str, ...] = "auto"
    """`auto` (CUDA, then MPS, then CPU), a torch device such as `cpu` or `cuda:1`, or several of them."""
    threads: int = 0
    """Threads that run the network on a CPU, at least 0; 0 = every CPU that this process may use."""
    deterministic: bool = False
    """True: the same bytes run after run on one kind of CUDA device, at some cost; on a CPU they always are."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "threads"):
            if getattr(self, key) < 0:
                raise SettingsError(f"{key} must be at least 0, not {getattr(self, key)}")


def identity_of(predictor: Predictor | ArrayFunction) -> str | None:
    """What decides a predictor's results; None for a plain function, which has no identity to compare."""
    return predictor.identity if isinstance(predictor, LoadedModel) else None


def device_lock(predictor: Predictor | ArrayFunction) -> AbstractContextManager[object]:
    """Hold a loaded predictor's device: of several scenes in one process, one at a time uses it."""
    return predictor.lock if isinstance(predictor, LoadedModel) else nullcontext()


def as_predictor(predictor: Predictor | ArrayFunction, card: ModelCard) -> Predictor:
    """What returns probabilities as it is; a torch module or plain function wrapped to return them in float32."""
    if isinstance(predictor, LoadedModel | Runnable):
        return predictor
    if isinstance(predictor, nn.Module):
        predictor.eval()
        return lambda tiles: activate(predictor(tiles).float(), card)
    call = _ArrayCall(predictor)
    return lambda tiles: activate(_as_tensor(call(tiles)).float(), card)


class PlainRunnable:
    """A plain function or torch module in the form of a ready network."""

    dtype, layout, device = torch.float32, torch.contiguous_format, torch.device("cpu")

    def __init__(self, predictor: Predictor | ArrayFunction, card: ModelCard) -> None:
        """`card` says what it returns."""
        self._predict = as_predictor(predictor, card)

    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> probabilities."""
        return self._predict(tiles)


class _ArrayCall:
    """Calls a plain function with numpy arrays, or with tensors when it takes no arrays."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self._takes_tensors = False

    def __call__(self, tiles: Tensor) -> object:
        if self._takes_tensors:
            return self._function(tiles)
        try:
            return self._function(tiles.cpu().numpy())
        except (TypeError, AttributeError) as refused:
            # What torch says of an array; a fault of the function itself fails with tensors too.
            try:
                result = self._function(tiles)
            except (TypeError, AttributeError):
                raise refused from None
            self._takes_tensors = True
            return result


def _as_tensor(result: object) -> Tensor:
    if isinstance(result, Tensor):
        return result
    array = np.asarray(result)
    if array.dtype.kind not in "fiub":
        raise ModelError(
            f"the predictor returned {type(result).__name__} where an array of probabilities (N, classes, H, W) is due"
        )
    return torch.from_numpy(np.ascontiguousarray(array))
