"""Loading of models: a checkpoint or an imported network on one device, as `load_predictor` returns it."""

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
from pipeline.model.predictor.compiled import BatchShape, CompiledNetwork, CompiledVariants
from pipeline.model.predictor.devices import resolve_device
from pipeline.model.predictor.optimize import Arithmetic, converted, fold_batch_norm, pin_convolution_kernels
from pipeline.model.predictor.precision import MAX_CHANGE, Precision, PrecisionCheck, candidate_precisions
from pipeline.model.predictor.protocol import LoadedModel, Runnable, model_identity

log = logging.getLogger(__name__)


class LoadedPredictor:
    """The network of a checkpoint or of an imported file, on one device; returns probabilities in float32.

    An imported network runs in float32 unless the settings name another format, and keeps the memory layout of its
    export where results depend on it. It pickles as its path; unpickling loads the file once per process.
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
        exported = isinstance(model, ExportedModel)
        self._precision = precision
        self._candidates = candidate_precisions(precision, self.device, exported=exported)
        layout = _find_layout(network, self.card, self.device) if exported else torch.channels_last
        self._variants = CompiledVariants(network, self.card, device=self.device, layout=layout)
        self._check: PrecisionCheck | None = None
        self._checking = threading.Lock()
        if exported:
            self.check_precision(trial_tiles(self.card))

    @property
    def identity(self) -> str:
        """Weights, precision of the settings (with the first candidate of `auto`), and type of device."""
        precision = f"auto-{self._candidates[0]}" if self._precision == "auto" else self._precision
        return model_identity(self.sha256, precision, self.device.type)

    @property
    def members(self) -> tuple[LoadedModel, ...]:
        """Itself: one model."""
        return (self,)

    def __reduce__(self) -> tuple[Callable[..., LoadedPredictor], tuple[object, ...]]:
        path, device, precision = self._source
        return load_once, (Path(path).absolute(), device, precision, self.sha256)

    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> `(N, classes, h, w)` probabilities, float32 in 0..1.

        The first batch checks the precision for all that follow.
        """
        with self._checking:
            if self._check is None:
                self._check = self.check_precision(tiles)
                self._check.log_fallback(str(self._source[0]))
        return self.runnable(BatchShape(precision=self._check.precision))(tiles)

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """Run tiles in float32 and in the precision of the settings; only `auto` falls back when they differ.

        Args:
            tiles: `(N, bands, H, W)` normalised float32, as in inference.

        Raises:
            SettingsError: the network does not run in the precision of the settings.
        """
        if self._candidates[0] in ("exact", "float32"):
            return PrecisionCheck(precision=self._candidates[0])
        expected, tried = self._variants.reference()(tiles), dict[str, float]()
        for precision in self._candidates:
            change = self._change(precision, tiles, expected)
            if change <= MAX_CHANGE or self._precision != "auto":
                return PrecisionCheck(precision=precision, change=change, note=_note(tried, precision))
            tried[precision] = change
        return PrecisionCheck(precision="float32", change=change, note=_note(tried, "float32"))

    def _change(self, precision: str, tiles: Tensor, expected: Tensor) -> float:
        """Largest change of a probability; the variant is kept, since it will most likely be used."""
        try:
            return float((self.runnable(BatchShape(precision=precision))(tiles) - expected).abs().max())
        except (RuntimeError, ModelError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(
                f"inference.precision: {self._precision} does not suit this network ({reason}); use float32"
            ) from error

    def runnable(self, work: BatchShape) -> Runnable:
        """See `LoadedModel.runnable`; made once and kept."""
        return self._variants.runnable(work)


def _note(tried: Mapping[str, float], used: str) -> str:
    """Why `auto` fell back: the largest change of a probability in each precision tried."""
    if not tried:
        return ""
    changes = ", ".join(f"{change:.3g} in {precision}" for precision, change in tried.items())
    return f"a probability would change by more than {MAX_CHANGE} ({changes}): {used} is used"


def _find_layout(network: nn.Module, card: ModelCard, device: torch.device) -> torch.memory_format:
    """`channels_last`, several times faster on CPUs, unless results then differ.

    An imported network may read memory in the order of its export, so both layouts are run and compared.
    """
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        arithmetic = Arithmetic(device=device, layout=layout)
        form = CompiledNetwork(converted(network, arithmetic), card, arithmetic)
        try:
            results.append(form(trial_tiles(card)))
        except (RuntimeError, ModelError) as error:
            if layout == torch.contiguous_format:
                raise
            log.info("the network needs the memory layout of its export: %s", error)
            return torch.contiguous_format
    same = float((results[1] - results[0]).abs().max()) <= ROUNDING
    return torch.channels_last if same else torch.contiguous_format


def load_predictor(path: str | Path, device: str = "auto", *, precision: Precision = "auto") -> LoadedPredictor:
    """Load a checkpoint or an imported network, ready to run.

    Args:
        path: a `.safetensors` checkpoint, or a `.pt2` file that `import_model` wrote.
        device: `auto`, or a torch device such as `cpu` or `cuda:1`.
        precision: number format; `auto` is checked on real tiles against float32, and is float32 for an imported
            network.

    Raises:
        ModelError: the file is missing, damaged, or of another format.
        SettingsError: the device does not exist here, or the network does not run in that precision.
    """
    return LoadedPredictor(open_model(Path(path)), device=device, precision=precision)


def open_model(path: Path) -> Checkpoint | ExportedModel:
    """Read and verify a checkpoint or an imported network; raises ModelError."""
    return load_exported(path) if path.suffix == SUFFIX else load_checkpoint(path)


@lru_cache(maxsize=8)
def load_once(path: Path, device: str, precision: Precision, sha256: str) -> LoadedPredictor:
    """Load a model in a worker process, once, and check that it is the client's; an ensemble has several."""
    predictor = load_predictor(path, device, precision=precision)
    if predictor.sha256 != sha256:
        raise ModelError(f"{path}: differs between client ({sha256[:12]}) and worker ({predictor.sha256[:12]})")
    return predictor
