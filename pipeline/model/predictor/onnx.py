"""ONNX export of a checkpoint, for programs that run networks without torch.

The file takes normalised tiles and returns probabilities: temperature and activation are inside. The model card,
which describes how pixels become such tiles, is in its metadata under `scenemill.card`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.exported.conformance import trial_tiles
from pipeline.model.predictor.compiled import activate
from pipeline.storage import atomic_path

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

log = logging.getLogger(__name__)

SUFFIX = ".onnx"
INPUT, OUTPUT = "tiles", "probabilities"
"""Names of the one input and the one output."""
PACKAGES = ("onnx", "onnxscript")
_NOISY_LOGGER = "torch.onnx._internal.exporter._registration"
"""A logger that warns at each export that torchvision is not installed, which no network here needs."""


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """The written file."""

    path: Path
    """The ONNX file."""
    sha256: str
    """Content hash of the checkpoint it was made of."""
    tile_size: int | None
    """The only height and width it takes, px; None = all that the card allows. The batch is always free."""


def export_onnx(checkpoint: str | Path, out: str | Path, *, tile_size: int | None = None) -> OnnxFacts:
    """Write a checkpoint as an ONNX file, atomically.

    Args:
        checkpoint: a `.safetensors` checkpoint of a native network.
        out: the `.onnx` file to write or replace; its folder must exist.
        tile_size: the only height and width that the file shall take, px; None leaves them free where possible,
            and takes the card's where the network has one.

    Raises:
        SettingsError: a path or the tile size is wrong, or the packages onnx and onnxscript are missing.
        ModelError: the checkpoint is unusable, or the exporter cannot express it.
        TransientError: the file cannot be written.
    """
    source, target = Path(checkpoint), Path(out)
    _check_arguments(source, target)
    model = load_checkpoint(source)
    size = _resolve_tile_size(model.card, tile_size)
    program = _export(model, size)
    program.model.metadata_props.update({"scenemill.card": model.card.to_json(), "scenemill.sha256": model.sha256})
    _save(program, target)
    return OnnxFacts(path=target, sha256=model.sha256, tile_size=size)


class _Probabilities(nn.Module):
    """A network with its card's temperature and activation behind it."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network, self.card = network, card

    def forward(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` -> `(N, classes, h, w)` in 0..1."""
        return activate(self.network(tiles), self.card)


def _check_arguments(source: Path, target: Path) -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise SettingsError(f"ONNX files need the packages {', '.join(missing)}: pip install scenemill[onnx]")
    if source.suffix == ".pt2":
        raise SettingsError(f"{source}: an imported network; export the original module with torch.onnx.export instead")
    if target.suffix != SUFFIX or not target.absolute().parent.is_dir():
        raise SettingsError(f"--out {target} must end in {SUFFIX} and lie in a folder that exists")


def _resolve_tile_size(card: ModelCard, tile_size: int | None) -> int | None:
    if tile_size is None:
        return card.tile_size
    if card.tile_size not in (None, tile_size) or not card.takes(tile_size):
        rule = f"{card.size_offset} modulo {card.stride} and above {2 * card.margin}"
        only = rule if card.tile_size is None else str(card.tile_size)
        raise SettingsError(f"--tile-size must be {only} px for this network, not {tile_size}")
    return tile_size


def _export(model: Checkpoint, size: int | None) -> ONNXProgram:
    card = model.card
    tiles = trial_tiles(card, 2)
    if size is not None:
        tiles = torch.zeros((2, len(card.bands), size, size))
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                _Probabilities(model.network, card).eval(),
                (tiles,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(_free_axes(card, size),),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or repr(cause)).splitlines()[0]
        hint = "name a --tile-size" if size is None else "run it with torch instead"
        raise ModelError(f"{model.path}: cannot be written as ONNX ({reason}); {hint}") from error
    assert program is not None
    return program


def _free_axes(card: ModelCard, size: int | None) -> dict[int, object]:
    """The batch, and without a fixed size heights and widths `stride * k + size_offset`."""
    from torch.export import Dim

    free: dict[int, object] = {0: Dim("batch")}
    if size is None:
        least = 2 * card.margin // card.stride + 1
        for axis, name in ((2, "rows"), (3, "cols")):
            cells = Dim(name, min=least)
            free[axis] = cells if card.stride == 1 else card.stride * cells + card.size_offset
    return free


def _save(program: ONNXProgram, target: Path) -> None:
    import onnx

    with atomic_path(target) as partial:
        program.save(str(partial), external_data=False)
        onnx.checker.check_model(str(partial))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress messages of torch's exporter: a deprecated class that it uses itself, and packages it looks for."""
    noisy = logging.getLogger(_NOISY_LOGGER)
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec.. is deprecated", FutureWarning)
            yield
    finally:
        noisy.setLevel(level)
