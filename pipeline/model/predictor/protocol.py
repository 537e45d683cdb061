"""Predictor protocols: plain functions, loaded models, and networks in one number format.

A predictor is any callable `(N, bands, H, W) float32 -> (N, classes, h, w)`: a loaded checkpoint, a torch
module, or a plain function on numpy arrays or tensors. A `LoadedModel` has a card, checks a number format on real
tiles, and returns a `Runnable` for batches in that format.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
from pipeline.model.predictor.precision import Precision, PrecisionCheck

Augment = Literal["none", "flips", "rotations", "all"]
"""Symmetries of a tile that results are averaged over; see `pipeline.model.predictor.ensemble`."""


class Predictor(Protocol):
    """A network: normalised tiles in, probabilities (or the card's logits) out."""

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` float32 -> `(N, classes, H - 2 margin, W - 2 margin)`."""
        ...


@runtime_checkable
class Runnable(Protocol):
    """A network in one number format; many threads may call it at once on a CPU."""

    dtype: torch.dtype
    """Number format of tiles that need no conversion."""
    layout: torch.memory_format
    """Memory layout of tiles that need no rearranging."""
    device: torch.device
    """Where it runs."""

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` normalised tiles -> `(N, classes, h, w)` probabilities, float32 in 0..1.

        Tiles in contiguous float32 are accepted too.
        """
        ...


@runtime_checkable
class LoadedModel(Protocol):
    """A model with its card on one device; `load_predictor` returns one."""

    card: ModelCard
    """Its input and output."""
    device: torch.device
    """Where it runs."""
    lock: threading.Lock
    """Held while a scene uses the device: concurrent scenes of one process use it one at a time."""

    @property
    def identity(self) -> str:
        """All that decides the results and is known before any work; see `model_identity`."""
        ...

    @property
    def members(self) -> tuple[LoadedModel, ...]:
        """The models whose probabilities are averaged; of a single model, itself."""
        ...

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> probabilities; the first call checks the precision."""
        ...

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """Choose the precision on real tiles, `(N, bands, H, W)` normalised float32."""
        ...

    def runnable(self, work: BatchShape) -> Runnable:
        """The model in the precision of a check, compiled for these batches where that is worthwhile."""
        ...


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


def model_identity(sha256: str, precision: str, device: str) -> str:
    """Identity of a model on a device: equal ones give equal results on the same kind of hardware.

    Args:
        sha256: content hash of weights and card.
        precision: the setting; `auto` with the format that is tried first.
        device: its type.
    """
    return f"{sha256} {precision} {device}"


def identity_of(predictor: Predictor | ArrayFunction) -> str | None:
    """Identity of a loaded model; None for a plain function, which has none to compare."""
    return predictor.identity if isinstance(predictor, LoadedModel) else None


def device_lock(predictor: Predictor | ArrayFunction) -> AbstractContextManager[object]:
    """Hold the device of a loaded model: concurrent scenes of one process use it one at a time."""
    return predictor.lock if isinstance(predictor, LoadedModel) else nullcontext()


def as_predictor(predictor: Predictor | ArrayFunction, card: ModelCard) -> Predictor:
    """A model as it is; a torch module or plain function wrapped to return probabilities in float32."""
    if isinstance(predictor, LoadedModel | Runnable):
        return predictor
    if isinstance(predictor, nn.Module):
        predictor.eval()
        return lambda tiles: activate(predictor(tiles).float(), card)
    call = _ArrayCall(predictor)
    return lambda tiles: activate(_as_tensor(call(tiles)).float(), card)


class PlainRunnable:
    """A plain function or torch module as a `Runnable`."""

    dtype, layout, device = torch.float32, torch.contiguous_format, torch.device("cpu")

    def __init__(self, predictor: Predictor | ArrayFunction, card: ModelCard) -> None:
        """Bind a function to the card that describes its output."""
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
            # A tensor function refuses arrays in this way; a fault of the function itself fails with tensors too.
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
