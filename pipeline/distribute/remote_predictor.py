"""A model that other processes run: verified here, and loaded by each of them.

It travels as its path and its hash. A worker that has no such file at the path, or another one, takes it from the
exchange place, keeps it for all workers of its machine, and loads it once per process.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import ModelError, SettingsError
from pipeline.model.predictor import (
    BatchShape,
    LoadedModel,
    LoadedPredictor,
    Precision,
    PrecisionCheck,
    Runnable,
    load_once,
    open_model,
)
from pipeline.storage import Exchange, ensure_dir

MODELS = "models"
"""Where models lie in the exchange place."""
LOAD_LOCK = threading.Lock()
"""Held while a model is loaded: the tasks of one process share it."""


class RemotePredictor:
    """Stands for a `LoadedPredictor` where none is needed: it holds no weights, here or on a device.

    Whoever unpickles it has the model loaded. Used here all the same, it loads it on first use.
    """

    def __init__(self, path: Path, device: str, *, precision: Precision, exchange: Exchange | None = None) -> None:
        """Verify a model, and lay it into the exchange place.

        Args:
            path: a `.safetensors` checkpoint, or a `.pt2` file that `import_model` wrote.
            device: where the other processes run it, as they name it; need not exist here.
            precision: number format.
            exchange: where they find it, unless they see the same file under the same path.

        Raises:
            ModelError: the file is missing, damaged, or none of ours.
            SettingsError: no device has such a name.
            TransientError: the exchange place refuses.
        """
        self.device = _named(device)
        model = open_model(path)
        self.card = model.card
        self.turn = threading.Lock()
        self.identity = f"{model.sha256} {precision} {device}"
        self.known: dict[tuple[str, str], str | None] = {}
        """What workers have told: client and identity here -> identity there."""
        models = None if exchange is None else exchange.child(MODELS)
        self._source = (path.absolute(), device, precision, model.sha256, models)
        if models is not None and not models.exists(_name(path, model.sha256)):
            models.upload(path, _name(path, model.sha256))

    @property
    def members(self) -> tuple[LoadedModel, ...]:
        """Itself: one model."""
        return (self,)

    def __reduce__(self) -> tuple[Callable[..., LoadedPredictor], tuple[object, ...]]:
        return load_in_worker, self._source

    def __call__(self, tiles: Tensor) -> Tensor:
        """See `LoadedModel`."""
        return self._loaded()(tiles)

    def prove(self, tiles: Tensor) -> PrecisionCheck:
        """See `LoadedModel`."""
        return self._loaded().prove(tiles)

    def ready(self, work: BatchShape) -> Runnable:
        """See `LoadedModel`."""
        return self._loaded().ready(work)

    def _loaded(self) -> LoadedPredictor:
        return load_in_worker(*self._source)


def load_in_worker(
    path: Path, device: str, precision: Precision, sha256: str, models: Exchange | None
) -> LoadedPredictor:
    """Load a model in a worker, once per process.

    Args:
        path: where the client has it.
        device: as in `load_predictor`.
        precision: as in `load_predictor`.
        sha256: of the model that the client means.
        models: where to find it otherwise.

    Raises:
        SettingsError: it is neither at its path nor in the exchange place.
        TransientError: it cannot be fetched.
    """
    with LOAD_LOCK:
        return _loaded(path, device, precision, sha256, models)


@lru_cache(maxsize=8)
def _loaded(path: Path, device: str, precision: Precision, sha256: str, models: Exchange | None) -> LoadedPredictor:
    try:
        return load_once(path, device, precision, sha256)
    except ModelError as error:
        if models is None:
            raise SettingsError(
                f"the worker on {socket.gethostname()} does not have the model of this run: {error}; let it see the "
                "same file under the same path, or set distribute.exchange"
            ) from error
    kept = _kept_models() / _name(path, sha256)
    try:
        return load_once(kept, device, precision, sha256)
    except ModelError:
        models.fetch(kept.name, kept)
    return load_once(kept, device, precision, sha256)


def _kept_models() -> Path:
    """Where this machine keeps models from elsewhere; what lies there is believed only by its hash."""
    folder = Path(tempfile.gettempdir()) / f"scenemill-{os.getuid()}" / MODELS
    ensure_dir(folder)
    return folder


def _name(path: Path, sha256: str) -> str:
    return f"{sha256}{path.suffix}"


def _named(device: str) -> torch.device:
    try:
        return torch.device("cpu" if device == "auto" else device)
    except RuntimeError as error:
        raise SettingsError(f"inference.device = {device!r} is no device; use auto, cpu or cuda") from error
