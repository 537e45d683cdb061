"""A network prepared for one device, and the one form in which all predictors are called.

A predictor is any callable `(N, bands, H, W) float32 -> (N, classes, h, w)`: a loaded checkpoint, a torch
module, or a plain function on numpy arrays or tensors.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.card import ModelCard
from pipeline.checkpoint import Checkpoint, load_checkpoint
from pipeline.errors import ModelError, SettingsError
from pipeline.external import SUFFIX, ExternalModel, load_external
from pipeline.external_network import ExportedNetwork
from pipeline.external_trial import ROUNDING, trial_tiles

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
MOST_CHANGE = 0.01
"""`precision: auto` keeps a lower precision only while no probability of its trial changes by more."""


class Predictor(Protocol):
    """What runs a network: normalised tiles in, probabilities (or the card's logits) out."""

    def __call__(self, tiles: Tensor, /) -> Tensor:
        """`(N, bands, H, W)` float32 -> `(N, classes, H - 2 margin, W - 2 margin)`."""
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
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU), or a torch device such as `cpu` or `cuda:1`."""

    def __post_init__(self) -> None:
        if self.batch_size < 0:
            raise SettingsError(f"batch_size must be at least 0, not {self.batch_size}")


class LoadedPredictor:
    """The network of a checkpoint or of an imported file, prepared for one device; returns probabilities in float32.

    Batch norm is folded into the convolutions, weights are `channels_last`, and the number format is
    the lowest one that `precision` allows. A network from elsewhere runs in float32 unless another format is
    named, and keeps the memory layout it was exported with where it depends on it. It pickles as its path:
    whoever unpickles it loads the file once per process.
    """

    def __init__(self, model: Checkpoint | ExternalModel, *, device: str, precision: Precision):
        """Prepare a network, in place."""
        self.card, self.sha256 = model.card, model.sha256
        self.turn = threading.Lock()
        self.device = resolve_device(device)
        self._source = (model.path, device, precision)
        network = fold_batch_norm(model.network.eval()).to(self.device)
        if self.device.type == "cpu":
            settle_convolutions(network)
        self._network: nn.Module = network
        self._layout = torch.contiguous_format
        self.precision = torch.float32
        foreign = isinstance(model, ExternalModel)
        self._lay_out(trust=not foreign)
        self._lower("float32" if foreign and precision == "auto" else precision)

    @property
    def identity(self) -> str:
        """What decides its results: weights, number format and kind of device."""
        return f"{self.sha256} {self.precision} {self.device.type}"

    def __reduce__(self) -> tuple[Callable[..., LoadedPredictor], tuple[object, ...]]:
        path, device, precision = self._source
        return _load_once, (Path(path).absolute(), device, precision, self.sha256)

    @torch.inference_mode()
    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> `(N, classes, h, w)` probabilities, float32 in 0..1."""
        tiles = tiles.to(self.device, self.precision).contiguous(memory_format=self._layout)
        return activate(self._network(tiles).float(), self.card)

    def _lay_out(self, *, trust: bool) -> None:
        """Store weights and tiles `channels_last`, which is several times faster on CPUs.

        A network from elsewhere may read memory in the order of its export, so it must prove itself.
        """
        trial = None if trust else trial_tiles(self.card).to(self.device)
        expected = None if trial is None else self(trial)
        self._arrange(torch.channels_last)
        if trial is None or expected is None:
            return
        try:
            if float((self(trial) - expected).abs().max()) <= ROUNDING:
                return
        except RuntimeError as error:
            log.info("the network needs the memory layout of its export: %s", error)
        self._arrange(torch.contiguous_format)

    def _arrange(self, layout: torch.memory_format) -> None:
        self._layout = layout
        self._network = self._network.to(memory_format=layout)  # type: ignore[call-overload]

    def _lower(self, precision: Precision) -> None:
        wanted = _fast_type(self.device) if precision == "auto" else getattr(torch, precision)
        if wanted == torch.float32:
            return
        trial = trial_tiles(self.card).to(self.device)
        exact, expected = self._network, self(trial)
        self._network, self.precision = copy.deepcopy(exact).to(wanted), wanted
        try:
            change = float((self(trial) - expected).abs().max())
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(
                f"inference.precision: {precision} does not suit this network ({reason}); use float32"
            ) from error
        if precision == "auto" and not change <= MOST_CHANGE:
            log.info("%s changes a probability by %.3g, over %.3g: float32 is used", wanted, change, MOST_CHANGE)
            self._network, self.precision = exact, torch.float32


def identity_of(predictor: Predictor | ArrayFunction) -> str | None:
    """What decides a predictor's results; None for a plain function, which has no identity to compare."""
    return predictor.identity if isinstance(predictor, LoadedPredictor) else None


def exclusive(predictor: Predictor | ArrayFunction) -> AbstractContextManager[object]:
    """Hold a loaded predictor's device: of several scenes in one process, one at a time uses it."""
    return predictor.turn if isinstance(predictor, LoadedPredictor) else nullcontext()


def load_predictor(path: str | Path, device: str = "auto", *, precision: Precision = "auto") -> LoadedPredictor:
    """Load a checkpoint or an imported network, ready to run.

    Args:
        path: a `.safetensors` checkpoint, or a `.pt2` file that `import_model` wrote.
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.
        precision: number format; `auto` proves itself on a seeded trial batch against float32, and is float32 for
            an imported network.

    Raises:
        ModelError: the file is missing, damaged, or none of ours.
        SettingsError: the device does not exist here, or the network does not run in that precision.
    """
    path = Path(path)
    model = load_external(path) if path.suffix == SUFFIX else load_checkpoint(path)
    return LoadedPredictor(model, device=device, precision=precision)


@lru_cache(maxsize=4)
def _load_once(path: Path, device: str, precision: Precision, sha256: str) -> LoadedPredictor:
    """Load a checkpoint in a worker process, and make sure it is the one the client meant."""
    predictor = load_predictor(path, device, precision=precision)
    if predictor.sha256 != sha256:
        raise ModelError(f"{path}: differs between client ({sha256[:12]}) and worker ({predictor.sha256[:12]})")
    return predictor


def resolve_device(device: str, *, key: str = "inference.device") -> torch.device:
    """`auto` -> CUDA, MPS or CPU; any other name is checked to exist.

    Args:
        device: its name.
        key: the setting that holds the name, for the message.

    Raises:
        SettingsError: an unknown or absent device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{key} = {device!r} is not usable here: {reason}; use auto or cpu") from error
    return place


def activate(outputs: Tensor, card: ModelCard) -> Tensor:
    """A network's outputs -> probabilities: sigmoid or softmax over classes of `logits / temperature`.

    Written out, because torch's own sigmoid and softmax round the last bit differently where the CPU's threads
    divide the pixels; these forms do not.
    """
    if card.outputs == "probabilities":
        return outputs
    if card.temperature != 1:
        outputs = outputs / card.temperature
    if card.activation == "sigmoid":
        return torch.reciprocal(1 + torch.exp(-outputs))
    powers = torch.exp(outputs - outputs.amax(dim=1, keepdim=True))
    return powers / powers.sum(dim=1, keepdim=True)


def as_predictor(predictor: Predictor | ArrayFunction, card: ModelCard) -> Predictor:
    """A loaded predictor as it is; a torch module or plain function wrapped to return float32 probabilities."""
    if isinstance(predictor, LoadedPredictor):
        return predictor
    if isinstance(predictor, nn.Module):
        predictor.eval()
        return lambda tiles: activate(predictor(tiles).float(), card)
    call = _ArrayCall(predictor)
    return lambda tiles: activate(_as_tensor(call(tiles)).float(), card)


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


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm that directly follows a convolution in a Sequential into it, in place.

    Exact in real arithmetic: `gamma (W x + b - mean) / sigma + beta` is one convolution (Jacob et al.
    2018, Quantization and Training of Neural Networks, section 3.2).
    """
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            first, second = module[index], module[index + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(first, second)
                module[index + 1] = nn.Identity()
    return network


def settle_convolutions(network: nn.Module) -> None:
    """Make results independent of the number of CPU threads, in place.

    torch gives float32 1x1 convolutions to oneDNN only when it has more than one thread (`use_mkldnn` in
    ATen/native/Convolution.cpp), and its other kernel rounds differently. A dilation means nothing to a
    kernel of one tap, but makes the choice the same for every number of threads.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (2, 2)
        if isinstance(module, ExportedNetwork):
            module.settle_convolutions()


def _fast_type(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.float16
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if device.type == "cpu" and supports is not None and supports() else torch.float32
