"""Compiled variants of a network with its activation, one per number format and batch shape, made on demand.

On CUDA a network is compiled once the batches announced in this process save more time than compiling takes; until
then, and for other shapes, the fused variant runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.card import ModelCard
from pipeline.model.exported.conformance import trial_tiles
from pipeline.model.exported.module import ExportedNetwork
from pipeline.model.predictor.optimize import (
    Arithmetic,
    as_input,
    compile_network,
    is_compilation_worthwhile,
    optimize_network,
)
from pipeline.model.predictor.precision import MAX_CHANGE, torch_dtype

log = logging.getLogger(__name__)

TIMED_BATCHES = 3
"""Batches that run before one is timed."""

Shape = tuple[int, int, int, int]
"""`(N, bands, H, W)` of a batch."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Batches that a network will run, and how."""

    precision: str
    """The number format that a check chose."""
    batches: int = 1
    """About how many batches will follow; compiling is worthwhile for many."""
    shape: Shape | None = None
    """Shape of every batch, if all are equal."""
    deterministic: bool = False
    """True: use only algorithms that give the same bytes in every run; a CPU always does."""


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


class CompiledNetwork:
    """A network in one number format, its activation included; see `pipeline.model.predictor.protocol.Runnable`."""

    def __init__(self, network: Callable[[Tensor], Tensor], card: ModelCard, arithmetic: Arithmetic) -> None:
        """Bind a prepared network to its card and the way it computes."""
        self.dtype, self.layout, self.device = arithmetic.input, arithmetic.layout, arithmetic.device
        self.network, self._card, self._arithmetic = network, card, arithmetic

    @torch.inference_mode()
    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised tiles -> `(N, classes, h, w)` probabilities, float32 in 0..1."""
        tiles = as_input(tiles, self._arithmetic)
        with self._arithmetic.cudnn_flags():
            return activate(self._run(tiles).float(), self._card)

    def _run(self, tiles: Tensor) -> Tensor:
        """The network's output; a graph from elsewhere that cannot be computed is the model's fault."""
        try:
            return self.network(tiles)
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            is_machine = any(word in str(error) for word in ("memory", "CUDA", "cuDNN"))
            if is_machine or not isinstance(self.network, ExportedNetwork):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"the network of the model fails on tiles {tuple(tiles.shape)}: {reason}; export it again"
            ) from error


class CompiledVariants:
    """The variants of one network, each made on first use and cached."""

    def __init__(self, network: nn.Module, card: ModelCard, *, device: torch.device, layout: torch.memory_format):
        """Bind a network with folded batch norm, on its device; it is not changed."""
        self._network, self._card, self._device, self._layout = network, card, device, layout
        self._variants: dict[Arithmetic, CompiledNetwork] = {}
        self._compiled: dict[tuple[Arithmetic, Shape], CompiledNetwork] = {}
        self._seconds: dict[tuple[Arithmetic, Shape], float] = {}
        self._batches: Counter[tuple[Arithmetic, Shape]] = Counter()
        self._lock = threading.Lock()

    def runnable(self, work: BatchShape) -> CompiledNetwork:
        """The network in a precision; see `pipeline.model.predictor.protocol.LoadedModel.runnable`."""
        arithmetic = self._arithmetic(work.precision, deterministic=work.deterministic)
        with self._lock:
            if arithmetic not in self._variants:
                prepared = optimize_network(self._network, arithmetic, trial_tiles(self._card))
                self._variants[arithmetic] = CompiledNetwork(prepared, self._card, arithmetic)
            form = self._variants[arithmetic]
            if work.shape is None or not self._may_compile(arithmetic):
                return form
            return self._compiled_if_worthwhile(form, arithmetic, work.shape, work.batches)

    def reference(self) -> CompiledNetwork:
        """The unoptimized network in float32, which other precisions are compared with."""
        return CompiledNetwork(self._network, self._card, self._arithmetic("float32", deterministic=False))

    def _arithmetic(self, precision: str, *, deterministic: bool) -> Arithmetic:
        """TF32 and deterministic algorithms are choices of CUDA only."""
        on_cuda = self._device.type == "cuda"
        return Arithmetic(
            device=self._device,
            dtype=torch_dtype(precision),
            first_blocks_dtype=torch.float32 if precision == "mixed" else None,
            layout=self._layout,
            tf32=not (on_cuda and precision == "exact"),
            deterministic=on_cuda and deterministic,
        )

    def _may_compile(self, arithmetic: Arithmetic) -> bool:
        """Not if results must repeat: whether a network is compiled depends on measured time."""
        exported = isinstance(self._network, ExportedNetwork)
        return self._device.type == "cuda" and not arithmetic.deterministic and not exported

    def _compiled_if_worthwhile(
        self, form: CompiledNetwork, arithmetic: Arithmetic, shape: Shape, batches: int
    ) -> CompiledNetwork:
        key = (arithmetic, shape)
        if key in self._compiled:
            return self._compiled[key]
        self._batches[key] += batches
        if key not in self._seconds:
            self._seconds[key] = _seconds_per_batch(form, shape)
        if not is_compilation_worthwhile(self._batches[key], self._seconds[key]):
            return form
        self._compiled[key] = _compiled(self._network, self._card, arithmetic, shape, form)
        return self._compiled[key]


def _compiled(
    network: nn.Module, card: ModelCard, arithmetic: Arithmetic, shape: Shape, fused: CompiledNetwork
) -> CompiledNetwork:
    """The compiled network for batches of one shape; the fused one for others, or if that fails or differs."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    compiled = compile_network(network, arithmetic)

    def run(tiles: Tensor) -> Tensor:
        if tuple(tiles.shape) != shape:
            return fused.network(tiles)
        # torch compiles anew for a tensor made outside of inference mode.
        return compiled(tiles if tiles.is_inference() else tiles.clone())

    form, trial = CompiledNetwork(run, card, arithmetic), _noise(shape, fused)
    try:
        change = float((form(trial) - fused(trial)).abs().max())
    except (RuntimeError, FailOnRecompileLimitHit) as error:
        log.warning("the network is not compiled: %s", " ".join(str(error).split())[:300])
        return fused
    if change <= MAX_CHANGE:
        return form
    log.warning("the compiled network changes a probability by %.3g, over %s: it is not used", change, MAX_CHANGE)
    return fused


def _seconds_per_batch(form: CompiledNetwork, shape: Shape) -> float:
    tiles = _noise(shape, form)
    for _ in range(TIMED_BATCHES):
        form(tiles)
    # CUDA runs asynchronously: without waiting, only the submission would be timed.
    torch.cuda.synchronize(form.device)
    start = time.perf_counter()
    form(tiles)
    torch.cuda.synchronize(form.device)
    return time.perf_counter() - start


def _noise(shape: Shape, form: CompiledNetwork) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(form.device, form.dtype).contiguous(memory_format=form.layout)
