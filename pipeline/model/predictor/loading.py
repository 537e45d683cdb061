"""The network of a checkpoint, or of an imported file, on one device: what `load_predictor` returns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.exported.conformance import ROUNDING, trial_tiles
from pipeline.model.exported.load import SUFFIX, ExportedModel, load_exported
from pipeline.model.predictor.compiled import MAX_CHANGE, BatchShape, CompiledNetwork, CompiledVariants
from pipeline.model.predictor.devices import best_device
from pipeline.model.predictor.optimize import Arithmetic, converted, fold_batch_norm, pin_convolution_kernels
from pipeline.model.predictor.protocol import LoadedModel, Precision, PrecisionCheck, Runnable

log = logging.getLogger(__name__)


class LoadedPredictor:
    """The network of a checkpoint or of an imported file, on one device; returns probabilities in float32.

    A network from elsewhere runs in float32 unless another format is named, and keeps the memory layout it was
    exported with where it depends on it. It pickles as its path: whoever unpickles it loads the file once per
    process.
    """

    def __init__(self, model: Checkpoint | ExportedModel, *, device: str, precision: Precision):
        """Bring a network to its device; its batch norm is folded in place."""
        self.card, self.sha256 = model.card, model.sha256
        self.lock = threading.Lock()
        self.device = resolve_device(device)
        self._source = (model.path, device, precision)
        network = fold_batch_norm(model.network.eval()).to(self.device)
        if self.device.type == "cpu":
            pin_convolution_kernels(network)
        foreign = isinstance(model, ExportedModel)
        self._asked = precision
        self._candidates = _candidates(precision, self.device, foreign=foreign)
        layout = _find_layout(network, self.card, self.device) if foreign else torch.channels_last
        self._forms = CompiledVariants(network, self.card, device=self.device, layout=layout)
        self._proof: PrecisionCheck | None = None
        self._proving = threading.Lock()
        if foreign:
            self.check_precision(trial_tiles(self.card))

    @property
    def identity(self) -> str:
        """Weights, precision asked for with the format that `auto` would like, and kind of device."""
        precision = f"auto-{self._candidates[0]}" if self._asked == "auto" else self._asked
        return f"{self.sha256} {precision} {self.device.type}"

    @property
    def members(self) -> tuple[LoadedModel, ...]:
        """Itself: one model."""
        return (self,)

    def __reduce__(self) -> tuple[Callable[..., LoadedPredictor], tuple[object, ...]]:
        path, device, precision = self._source
        return load_once, (Path(path).absolute(), device, precision, self.sha256)

    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> `(N, classes, h, w)` probabilities, float32 in 0..1.

        The first batch proves the precision for all that follow.
        """
        with self._proving:
            if self._proof is None:
                self._proof = self.check_precision(tiles)
                self._proof.log_fallback(str(self._source[0]))
        return self.runnable(BatchShape(precision=self._proof.precision))(tiles)

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """Run tiles in float32 and in the precision asked for; only `auto` steps back when they differ.

        Args:
            tiles: `(N, bands, H, W)` normalised float32, as the engine would hand them over.

        Raises:
            SettingsError: the network does not run in the precision that was named.
        """
        if self._candidates[0] in ("exact", "float32"):
            return PrecisionCheck(precision=self._candidates[0])
        expected, tried = self._forms.reference()(tiles), dict[str, float]()
        for precision in self._candidates:
            change = self._change(precision, tiles, expected)
            if change <= MAX_CHANGE or self._asked != "auto":
                return PrecisionCheck(precision=precision, change=change, note=_note(tried, precision))
            tried[precision] = change
        return PrecisionCheck(precision="float32", change=change, note=_note(tried, "float32"))

    def _change(self, precision: str, tiles: Tensor, expected: Tensor) -> float:
        """Largest change of a probability; the form is kept, for it will most likely be used."""
        try:
            return float((self.runnable(BatchShape(precision=precision))(tiles) - expected).abs().max())
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(
                f"inference.precision: {self._asked} does not suit this network ({reason}); use float32"
            ) from error

    def runnable(self, work: BatchShape) -> Runnable:
        """See `LoadedModel.runnable`; made once and kept."""
        return self._forms.runnable(work)


def _note(tried: Mapping[str, float], used: str) -> str:
    """Why `auto` does not use the precisions that it tried, given the largest change of a probability in each."""
    if not tried:
        return ""
    changes = ", ".join(f"{change:.3g} in {precision}" for precision, change in tried.items())
    return f"a probability would change by more than {MAX_CHANGE} ({changes}): {used} is used"


def _candidates(precision: Precision, device: torch.device, *, foreign: bool) -> tuple[str, ...]:
    """The precision named, or those that `auto` tries on a device, the fastest first.

    Raises:
        SettingsError: `mixed` for a network from elsewhere, whose blocks are not known.
    """
    if foreign and precision == "mixed":
        raise SettingsError("inference.precision: mixed is for checkpoints of ours, not imported networks; use float32")
    if precision != "auto":
        return (precision,)
    fast = "float32" if foreign else _fast_type(device)
    return (fast,) if fast == "float32" else (fast, "mixed")


def _fast_type(device: torch.device) -> str:
    if device.type == "cuda":
        return "float16"
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if device.type == "cpu" and supports is not None and supports() else "float32"


def _find_layout(network: nn.Module, card: ModelCard, device: torch.device) -> torch.memory_format:
    """`channels_last`, several times faster on CPUs, unless results then differ.

    A network from elsewhere may read memory in the order of its export, so it must prove itself.
    """
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        arithmetic = Arithmetic(device=device, layout=layout)
        form = CompiledNetwork(converted(network, arithmetic), card, arithmetic)
        try:
            results.append(form(trial_tiles(card)))
        except RuntimeError as error:
            log.info("the network needs the memory layout of its export: %s", error)
            return torch.contiguous_format
    same = float((results[1] - results[0]).abs().max()) <= ROUNDING
    return torch.channels_last if same else torch.contiguous_format


def load_predictor(path: str | Path, device: str = "auto", *, precision: Precision = "auto") -> LoadedPredictor:
    """Load a checkpoint or an imported network, ready to run.

    Args:
        path: a `.safetensors` checkpoint, or a `.pt2` file that `import_model` wrote.
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.
        precision: number format; `auto` proves itself on real tiles against float32, and is float32 for an
            imported network.

    Raises:
        ModelError: the file is missing, damaged, or none of ours.
        SettingsError: the device does not exist here, or the network does not run in that precision.
    """
    return LoadedPredictor(open_model(Path(path)), device=device, precision=precision)


def open_model(path: Path) -> Checkpoint | ExportedModel:
    """Read and verify a checkpoint or an imported network; raises ModelError."""
    return load_exported(path) if path.suffix == SUFFIX else load_checkpoint(path)


@lru_cache(maxsize=8)
def load_once(path: Path, device: str, precision: Precision, sha256: str) -> LoadedPredictor:
    """Load a model in a worker process, and make sure it is the one the client meant; an ensemble has several."""
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
        return torch.device(best_device())
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{key} = {device!r} is not usable here: {reason}; use auto or cpu") from error
    return place
