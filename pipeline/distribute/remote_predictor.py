"""Proxy of a model that worker processes run: verified here, loaded by each of them.

It pickles as a path and a hash. A worker without that file at the path downloads it from the staging area into a cache
that all workers of its machine share, and loads it once per process.
"""

from __future__ import annotations

import socket
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
    model_identity,
    open_model,
)
from pipeline.storage import Exchange, private_folder

MODELS = "models"
"""Folder of models in the staging area, and in the cache of a machine."""
LOAD_LOCK = threading.Lock()
"""Held while a model is loaded, since the tasks of one process share the model."""


class RemotePredictor:
    """A `LoadedPredictor` without weights in this process.

    Unpickling it loads the model. Called in this process, it loads the model on first use.
    """

    def __init__(self, path: Path, device: str, *, precision: Precision, exchange: Exchange | None = None) -> None:
        """Verify a model, and upload it to the staging area.

        Args:
            path: a `.safetensors` checkpoint, or a `.pt2` file that `import_model` wrote.
            device: torch device of the workers; need not exist here.
            precision: number format.
            exchange: staging area; None: workers see the same file under the same path.

        Raises:
            ModelError: the file is missing, damaged, or of another format.
            SettingsError: no device has such a name.
            TransientError: the upload fails.
        """
        self.device = _torch_device(device)
        model = open_model(path)
        self.card = model.card
        self.lock = threading.Lock()
        self.identity = model_identity(model.sha256, precision, device)
        self.known: dict[tuple[str, str], str | None] = {}
        """Identities that workers reported: (client, identity here) -> identity there."""
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

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """See `LoadedModel`."""
        return self._loaded().check_precision(tiles)

    def runnable(self, work: BatchShape) -> Runnable:
        """See `LoadedModel`."""
        return self._loaded().runnable(work)

    def _loaded(self) -> LoadedPredictor:
        return load_in_worker(*self._source)


def load_in_worker(
    path: Path, device: str, precision: Precision, sha256: str, models: Exchange | None
) -> LoadedPredictor:
    """Load a model in a worker, once per process.

    Args:
        path: of the file on the client's machine.
        device: as in `load_predictor`.
        precision: as in `load_predictor`.
        sha256: of the client's file.
        models: its folder in the staging area; None: there is none.
    """
    with LOAD_LOCK:
        return _loaded(path, device, precision, sha256, models)


@lru_cache(maxsize=8)
def _loaded(path: Path, device: str, precision: Precision, sha256: str, models: Exchange | None) -> LoadedPredictor:
    try:
        # First the client's path: on a shared disk nothing is downloaded.
        return load_once(path, device, precision, sha256)
    except ModelError as error:
        if models is None:
            raise SettingsError(
                f"the worker on {socket.gethostname()} does not have the model of this run: {error}; let it see the "
                "same file under the same path, or set distribute.exchange"
            ) from error

    # Then this machine's cache; a missing or damaged copy is downloaded again.
    cached = _model_cache() / _name(path, sha256)
    try:
        return load_once(cached, device, precision, sha256)
    except ModelError:
        models.fetch(cached.name, cached)
    return load_once(cached, device, precision, sha256)


def _model_cache() -> Path:
    """Folder of downloaded models on this machine, private to this user; each is verified by its hash before use."""
    return private_folder(MODELS)


def _name(path: Path, sha256: str) -> str:
    return f"{sha256}{path.suffix}"


def _torch_device(device: str) -> torch.device:
    try:
        return torch.device("cpu" if device == "auto" else device)
    except RuntimeError as error:
        raise SettingsError(f"inference.device = {device!r} is no device; use auto, cpu or cuda") from error
