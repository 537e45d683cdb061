"""Tensors of a safetensors file: entries of its header checked against the format, and values against the network.

Tensors lie one after the other from offset 0 to the end of the file, without gap or overlap, and each takes the bytes
of its shape and type. Only types that a network of ours has are known: floating-point weights, and counts of batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

BYTES_OF_TYPE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
"""Type of a tensor -> bytes of a number."""
MAX_AXES = 8
"""Axes of a tensor; a convolution's weights have 4."""


def shape_of(entry: object) -> tuple[int, ...]:
    """The shape in a tensor's entry.

    Raises:
        ValueError: the entry or the shape is no such thing.
    """
    shape = entry.get("shape") if isinstance(entry, Mapping) else None
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(_is_whole(size) for size in shape):
        raise ValueError(f"an entry without a shape of up to {MAX_AXES} whole numbers")
    return tuple(shape)


def count_bytes(entries: Mapping[str, object]) -> int:
    """Bytes of all tensors together.

    Raises:
        ValueError: an entry violates the format, or its type is none of a network of ours.
    """
    end = 0
    for begin, stop, size in sorted(_extent(entry) for entry in entries.values()):
        if begin != end or stop - begin != size:
            raise ValueError(f"a tensor at bytes {begin} to {stop} where {end} to {end + size} are due")
        end = stop
    return end


def _extent(entry: object) -> tuple[int, int, int]:
    """First byte of a tensor, the byte after its last, and the bytes that its shape and type take."""
    shape, offsets = shape_of(entry), entry.get("data_offsets") if isinstance(entry, Mapping) else None
    kind = entry.get("dtype") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str) or kind not in BYTES_OF_TYPE:
        raise ValueError(f"a tensor of another type than {', '.join(BYTES_OF_TYPE)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_whole(offset) for offset in offsets):
        raise ValueError("data_offsets that are not two whole numbers")
    return offsets[0], offsets[1], math.prod(shape) * BYTES_OF_TYPE[kind]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_shapes(tensors: Mapping[str, Tensor], network: nn.Module, path: Path) -> None:
    """Raise ModelError unless the tensors have the names, shapes and kinds of number of the network's."""
    needed = {key: _described(value) for key, value in network.state_dict().items()}
    found = {key: _described(value) for key, value in tensors.items()}
    wrong = [key for key in sorted(found.keys() | needed.keys()) if found.get(key) != needed.get(key)]
    if wrong:
        rows = "; ".join(
            f"{key[:100]} is {found.get(key, 'missing')}, not {needed.get(key, 'known')}" for key in wrong[:3]
        )
        raise ModelError(f"{path}: {len(wrong)} tensors do not fit the architecture: {rows}")


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError if a value is NaN or infinite."""
    for key, value in tensors.items():
        if value.numel() and not all(bool(bound.isfinite()) for bound in value.aminmax()):
            raise ModelError(f"{path}: the weights {key} hold NaN or infinity; train with a lower learning rate")


def _described(tensor: Tensor) -> str:
    """Shape, and whether the values are whole numbers."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of whole numbers'}"
