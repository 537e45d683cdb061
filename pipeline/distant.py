"""A model that other processes run: verified here, and loaded by each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.predictor import LoadedPredictor, Precision, Prepared, Proof, Ready, load_once, open_model


class DistantPredictor:
    """Stands for a `LoadedPredictor` where none is needed: it holds no weights, here or on a device.

    Whoever unpickles it has the model loaded. Used here all the same, it loads it on first use.
    """

    def __init__(self, path: Path, device: str, *, precision: Precision) -> None:
        """Verify a model.

        Args:
            path: a `.safetensors` checkpoint, or a `.pt2` file that `import_model` wrote.
            device: where the other processes run it, as they name it; need not exist here.
            precision: number format.

        Raises:
            ModelError: the file is missing, damaged, or none of ours.
            SettingsError: no device has such a name.
        """
        self.device = _named(device)
        model = open_model(path)
        self.card = model.card
        self.turn = threading.Lock()
        self.identity = f"{model.sha256} {precision} {device}"
        self._source = (path.absolute(), device, precision, model.sha256)

    @property
    def members(self) -> tuple[Prepared, ...]:
        """Itself: one model."""
        return (self,)

    def __reduce__(self) -> tuple[Callable[..., LoadedPredictor], tuple[object, ...]]:
        return load_once, self._source

    def __call__(self, tiles: Tensor) -> Tensor:
        """See `Prepared`."""
        return self._loaded()(tiles)

    def prove(self, tiles: Tensor) -> Proof:
        """See `Prepared`."""
        return self._loaded().prove(tiles)

    def ready(
        self,
        precision: str,
        *,
        batches: int = 1,
        shape: tuple[int, int, int, int] | None = None,
        deterministic: bool = False,
    ) -> Ready:
        """See `Prepared`."""
        return self._loaded().ready(precision, batches=batches, shape=shape, deterministic=deterministic)

    def _loaded(self) -> LoadedPredictor:
        return load_once(*self._source)


def _named(device: str) -> torch.device:
    try:
        return torch.device("cpu" if device == "auto" else device)
    except RuntimeError as error:
        raise SettingsError(f"inference.device = {device!r} is no device; use auto, cpu or cuda") from error
