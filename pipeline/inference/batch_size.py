"""Batch size: tiles per forward pass, and the error when memory does not suffice."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.errors import TransientError

SINGLE_TILE_PIXELS = 2**16
"""A CPU runs tiles of this many pixels one at a time: batches of them are not faster."""
_TILE_PIXELS = {"cpu": 2**18, "cuda": 2**22, "mps": 2**20}
"""Pixels of a full batch when `batch_size` is 0."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Batch size and worker threads of an engine."""

    batch_size: int
    """Tiles per forward pass, at least 1; halved when memory runs out."""
    min_batch_size: int = 1
    """Lower bound when halving."""
    workers: int = 1
    """Worker threads of a CPU, each of which runs a batch at a time."""
    threads: int = 1
    """Threads that torch may use in each worker."""


def resolve_batch_size(
    device: torch.device, tile_pixels: int, *, requested: int = 0, max_size: int | None = None, plain: bool = False
) -> int:
    """Tiles per forward pass.

    On a CPU, torch takes other kernels for one tile than for several, which sum in another order. So that the
    result does not depend on the setting, a CPU runs large tiles one at a time, and at least two small ones.

    Args:
        device: of the network.
        tile_pixels: pixels of a tile.
        requested: the setting; 0 keeps the device busy: 1 tile of 512 px on a CPU, 16 on CUDA.
        max_size: tiles in a whole strip of the scene, which no batch exceeds, whatever the region.
        plain: True for a plain function, which gets the requested size.
    """
    size = requested or max(1, _TILE_PIXELS.get(device.type, _TILE_PIXELS["cpu"]) // tile_pixels)
    if device.type == "cpu" and not plain:
        size = 1 if tile_pixels >= SINGLE_TILE_PIXELS else max(2, size)
    return size if max_size is None else min(size, max_size)


def min_batch_size(device: torch.device, size: int, *, plain: bool, deterministic: bool) -> int:
    """The smallest batch size that gives the same results as `size`."""
    if deterministic:
        return size
    return min(size, 2) if device.type == "cpu" and not plain else 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation on a device or the host failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def out_of_memory_message(size: int) -> TransientError:
    """The error of a batch that cannot be halved further."""
    if size > 1:
        return TransientError(
            f"no memory for {size} tiles at once, and fewer would not give the same bytes; "
            f"set inference.batch_size={size // 2} or a smaller tiling.tile_size"
        )
    return TransientError("no memory for a single tile; set a smaller tiling.tile_size, or run on a larger machine")
