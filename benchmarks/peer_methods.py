"""Reference implementations: MONAI's sliding window, and the plain read, predict, accumulate loop over windows.

Both as their users write them: float32 weights in default memory layout, autocast to float16 on CUDA. They need torch,
numpy, rasterio and safetensors, and MONAI for its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor, nn

from pipeline.model import Normalization, load_checkpoint

TOP = 254
"""The stored level of probability 1, as in our mosaics."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One scene to be segmented by one network."""

    scene: Path
    """The raster."""
    model: Path
    """The checkpoint."""
    out: Path
    """An existing, empty folder for `probability.tif` and `mask.tif`."""
    tile: int
    """Side of a tile, px."""
    overlap: int
    """Pixels shared by neighbouring tiles."""
    device: str
    """Of torch."""


def run_loop(task: Task) -> dict[str, Any]:
    """Read a window, predict, add to the sums; one tile at a time.

    Returns:
        `seconds` from file to files, the network loaded and warm.
    """
    network, how = _model(task)
    return {"seconds": _timed(lambda: _loop(network, how, task))}


def run_monai(task: Task, batches: tuple[int, ...]) -> dict[str, Any]:
    """MONAI's `SlidingWindowInferer` over the whole scene as one tensor, at the fastest of some batch sizes.

    Returns:
        `seconds` from file to files, the network loaded and warm, and the `batch` size.
    """
    network, how = _model(task)
    trial = _crop(task, how)
    seconds = {batch: _timed(lambda batch=batch: _slide(network, trial, task, batch)) for batch in batches}
    best = min(seconds, key=lambda batch: seconds[batch])
    return {"seconds": _timed(lambda: _monai(network, how, task, best)), "batch": best}


def _loop(network: nn.Module, how: Normalization, task: Task) -> None:
    with rasterio.open(task.scene) as source:
        profile, (height, width) = source.profile, source.shape
        total, count = (np.zeros((height, width), np.float32) for _ in range(2))
        for row, col in product(_starts(height, task), _starts(width, task)):
            pixels = _normalised(source.read(window=Window(col, row, task.tile, task.tile)), how)
            found = _predict(network, torch.from_numpy(pixels)[None], task)
            total[row : row + task.tile, col : col + task.tile] += found
            count[row : row + task.tile, col : col + task.tile] += 1
    _write(task, total / count, profile)


def _monai(network: nn.Module, how: Normalization, task: Task, batch: int) -> None:
    with rasterio.open(task.scene) as source:
        profile, pixels = source.profile, _normalised(source.read(), how)
    _write(task, _slide(network, pixels, task, batch), profile)


def _slide(network: nn.Module, pixels: NDArray[np.float32], task: Task, batch: int) -> NDArray[np.float32]:
    """`(bands, height, width)` model input -> `(height, width)` probabilities."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(
        roi_size=(task.tile, task.tile), sw_batch_size=batch, overlap=task.overlap / task.tile, mode="gaussian"
    )
    return _predict(lambda tiles: inferer(tiles, network), torch.from_numpy(pixels)[None], task)


@torch.inference_mode()
def _predict(network: Callable[[Tensor], Tensor], pixels: Tensor, task: Task) -> NDArray[np.float32]:
    """`(1, bands, height, width)` model input -> `(height, width)` probabilities."""
    with _autocast(task):
        logits = network(pixels.to(task.device))
    found: NDArray[np.float32] = torch.sigmoid(logits.float())[0, 0].cpu().numpy()
    return found


def _crop(task: Task, how: Normalization) -> NDArray[np.float32]:
    """Model input of two by two tiles, for trials."""
    side = 2 * task.tile - task.overlap
    with rasterio.open(task.scene) as source:
        return _normalised(source.read(window=Window(0, 0, side, side)), how)


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _model(task: Task) -> tuple[nn.Module, Normalization]:
    """The network on its device, after a first tile, and what it makes of pixels."""
    model = load_checkpoint(task.model)
    network = model.network.to(task.device)
    _predict(network, torch.zeros((1, len(model.card.bands), task.tile, task.tile)), task)
    return network, model.card.normalization


def _autocast(task: Task) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.float16) if task.device.startswith("cuda") else nullcontext()


def _starts(length: int, task: Task) -> Iterator[int]:
    yield from range(0, length - task.tile, task.tile - task.overlap)
    yield length - task.tile


def _normalised(pixels: NDArray[np.generic], how: Normalization) -> NDArray[np.float32]:
    """`(bands, height, width)` raw pixels -> model input."""
    gain, bias = (np.array(values, np.float32)[:, None, None] for values in (how.gain, how.bias))
    return pixels.astype(np.float32) * gain + bias


def _write(task: Task, found: NDArray[np.float32], profile: dict[str, Any]) -> None:
    profile = {**profile, "count": 1, "dtype": "uint8", "nodata": 255}
    rasters = {"probability": np.rint(found * TOP), "mask": found >= 0.5}
    for name, pixels in rasters.items():
        with rasterio.open(task.out / f"{name}.tif", "w", **profile) as target:
            target.write(pixels.astype(np.uint8), 1)
