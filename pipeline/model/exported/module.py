"""Graph interpreter: an exported network as a torch module that calls the steps of its graph in order.

It computes the same as `torch.export.load(path).module()`, without generated source code: each step looks its
operator up in `torch.ops.aten`, so only the operators in `operators` run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.exported.archive import CONSTANTS, PAYLOAD, WEIGHTS, Archive
from pipeline.model.exported.folding import fold_steps
from pipeline.model.exported.graph import ExportedGraph, Name, NetworkDevice, Step, Steps, TorchEnum, Value, names_in
from pipeline.model.exported.operators import SIZE_ARITHMETIC, base_name

DTYPES = {
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64},
    **{6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16},
}
"""The schema's `ScalarType` numbers that are taken."""
MAX_EXPANDED = 2**24
"""Numbers of a tensor that is stored as fewer, repeated with strides of 0."""
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
LAYOUTS = {7: torch.strided}
_NUMBERS: dict[str, Mapping[int, object]] = {
    "scalar_type": DTYPES,
    "memory_format": MEMORY_FORMATS,
    "layout": LAYOUTS,
}


class ExportedNetwork(nn.Module):
    """`(N, bands, H, W) float32 -> (N, classes, h, w)`, as exported; weights are buffers and move with the module.

    An export with a fixed batch is called in batches of that size, the last one padded.
    """

    def __init__(self, graph: ExportedGraph, tensors: Mapping[str, Tensor]) -> None:
        """Bind a graph to its weights.

        Args:
            graph: what is computed.
            tensors: payload key -> tensor, for every key in `graph.tensors`.
        """
        super().__init__()
        self.graph = graph
        for key in graph.tensors.values():
            if key not in tensors:
                raise ModelError(f"the graph uses the tensor {key[:100]!r}, which is not stored; export it again")
        self._bind(graph.steps, {name: tensors[key] for name, key in graph.tensors.items()})

    def _bind(self, steps: Steps, tensors: Mapping[str, Tensor]) -> None:
        """Compute these steps with these tensors, by the names of the steps' inputs."""
        for name in [*self._buffers]:
            delattr(self, name)
        self._buffer_of = {name: f"tensor{index}" for index, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            self.register_buffer(self._buffer_of[name], tensor)
        self._steps, self._program = steps, _Program(steps)

    @property
    def batch(self) -> int | None:
        """The only batch size that the graph takes; None = any."""
        return self.graph.axes[0].fixed

    def forward(self, tiles: Tensor) -> Tensor:
        """Run the graph.

        Args:
            tiles: `(N, bands, H, W)` of the sizes that the export takes.
        """
        self._check_sizes(tiles)
        largest = self.batch or self.graph.axes[0].high or len(tiles)
        if len(tiles) <= largest and self.batch in (None, len(tiles)):
            return self._run(tiles)
        parts = [self._run_padded(tiles[first : first + largest]) for first in range(0, len(tiles), largest)]
        return torch.cat(parts)

    def fold_batch_norm(self) -> None:
        """See `pipeline.model.predictor.optimize.fold_batch_norm`: the same for the graph, in place."""
        stored = {name: self.get_buffer(buffer) for name, buffer in self._buffer_of.items()}
        folded = fold_steps(self._steps, stored)
        self._bind(folded.steps, folded.tensors)

    def pin_convolution_kernels(self) -> None:
        """See `pipeline.model.predictor.optimize.pin_convolution_kernels`: the same for 1x1 convolutions, in place."""
        shapes = {name: tuple(self.get_buffer(buffer).shape) for name, buffer in self._buffer_of.items()}
        self._program.pin_convolution_kernels(shapes)

    def _run_padded(self, tiles: Tensor) -> Tensor:
        count = len(tiles)
        if self.batch is not None and count < self.batch:
            tiles = torch.cat([tiles, tiles[-1:].expand(self.batch - count, -1, -1, -1)])
        return self._run(tiles)[:count]

    def _run(self, tiles: Tensor) -> Tensor:
        weights = {name: self.get_buffer(buffer) for name, buffer in self._buffer_of.items()}
        inputs = [tiles if name == self.graph.tiles else weights[name] for name in self._steps.inputs]
        (result,) = self._program(inputs, tiles.device)
        if not isinstance(result, Tensor):
            raise ModelError(f"the network returned {type(result).__name__} where a tensor (N, classes, H, W) is due")
        return result

    def _check_sizes(self, tiles: Tensor) -> None:
        for word, axis, size in zip(("bands", "height", "width"), self.graph.axes[1:], tiles.shape[1:], strict=True):
            if not axis.takes(size):
                raise ModelError(
                    f"the exported network takes {word} {axis}, not {size}; set tiling.tile_size to suit it, or export "
                    "it with dynamic sizes"
                )


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A step with its operator."""

    step: Step
    function: Callable[..., object]
    forget: tuple[str, ...]
    """Names that no later step uses; their memory is freed."""


class _Program:
    """The calls of a graph; holds no tensors between runs."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        used = {value.text for value in steps.outputs if isinstance(value, Name)}
        calls = []
        for step in reversed(steps.steps):
            names = {*names_in((*step.arguments, *step.keywords.values())), *step.results}
            calls.append(_Call(step=step, function=_function(step), forget=tuple(sorted(names - used))))
            used |= names
        self._calls = calls[::-1]

    def pin_convolution_kernels(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give 1x1 convolutions a dilation, which means nothing to them."""
        self._calls = [replace(call, step=_with_pinned_kernel(call.step, shapes)) for call in self._calls]

    def __call__(self, inputs: Sequence[object], device: torch.device) -> list[object]:
        values = dict(zip(self._steps.inputs, inputs, strict=True))
        for call in self._calls:
            step = call.step
            arguments = [_resolve(value, values, device) for value in step.arguments]
            if step.nested is not None:
                result = call.function(arguments, device)
            else:
                result = call.function(*arguments, **{k: _resolve(v, values, device) for k, v in step.keywords.items()})
            if step.single:
                values[step.results[0]] = result
            else:
                values.update(zip(step.results, result, strict=True))  # type: ignore[call-overload]
            for name in call.forget:
                values.pop(name, None)
        return [_resolve(value, values, device) for value in self._steps.outputs]


def read_tensors(archive: Archive) -> dict[str, Tensor]:
    """Every weight, buffer and constant of an archive, from raw bytes; tensors that share bytes stay shared."""
    storages: dict[tuple[str, int], Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for member, folder in ((WEIGHTS, "data/weights"), (CONSTANTS, "data/constants")):
        payloads = archive.read_json(member).get("config")
        if not isinstance(payloads, dict):
            raise ModelError(f"{archive.path}: {member} has no map 'config'")
        for key, payload in payloads.items():
            try:
                tensors[key] = _read_tensor(archive, folder, payload, storages)
            except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
                raise ModelError(
                    f"{archive.path}: the tensor {key} cannot be read: {error!r}; export it again"
                ) from error
    return tensors


def _read_tensor(
    archive: Archive, folder: str, payload: Mapping[str, object], storages: dict[tuple[str, int], Tensor]
) -> Tensor:
    name, meta = f"{folder}/{payload['path_name']}", payload["tensor_meta"]
    if payload["use_pickle"] is not False or not PAYLOAD.fullmatch(name) or not isinstance(meta, dict):
        raise ModelError(
            f"{archive.path}: {name} is stored as a pickle, which could run code and is never loaded; export a network "
            "whose weights are plain tensors"
        )
    number = meta["dtype"]
    size, stride = ([_size(each) for each in meta[key]] for key in ("sizes", "strides"))
    if (name, number) not in storages:
        content = archive.read(name)
        empty = torch.zeros(0, dtype=DTYPES[number])
        storages[name, number] = torch.frombuffer(content, dtype=DTYPES[number]) if content else empty
    storage, offset = storages[name, number], _size(meta["storage_offset"])
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and not last < len(storage):
        raise ValueError(f"{len(storage)} numbers are stored where shape {size} needs {last + 1}")
    if math.prod(size) > max(len(storage), MAX_EXPANDED):
        raise ValueError(f"{len(storage)} numbers are stored, and expanded to shape {size}")
    return storage.as_strided(size, stride, offset) if math.prod(size) else torch.zeros(size, dtype=DTYPES[number])


def _size(value: Mapping[str, object]) -> int:
    size = value["as_int"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**40:
        raise ValueError(f"{size!r} is no size")
    return size


def _function(step: Step) -> Callable[..., object]:
    """The operator or Python function that a step names; names were checked when the graph was read."""
    if step.nested is not None:
        return _Program(step.nested)
    if step.target in SIZE_ARITHMETIC:
        return SIZE_ARITHMETIC[step.target]
    assert base_name(step.target), step.target
    *_, name, overload = step.target.split(".")
    function: object = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(function, torch._ops.OpOverload):
        raise ModelError(f"torch {torch.__version__} has no operator {step.target}; export the network with this torch")
    return function


def _with_pinned_kernel(step: Step, shapes: Mapping[str, tuple[int, ...]]) -> Step:
    if base_name(step.target) not in ("conv2d", "convolution") or step.keywords.get("transposed"):
        return step
    weight = step.keywords.get("weight")
    if not isinstance(weight, Name) or shapes.get(weight.text, ())[2:] != (1, 1):
        return step
    return replace(step, keywords={**step.keywords, "dilation": [2, 2]})


def _resolve(value: Value, values: Mapping[str, object], device: torch.device) -> object:
    """An argument of the graph -> the value passed to the operator."""
    if isinstance(value, Name):
        if value.text not in values:
            raise ModelError(f"the graph uses {value.text!r} before it is computed; export it again")
        return values[value.text]
    if isinstance(value, list):
        return [_resolve(each, values, device) for each in value]
    if isinstance(value, TorchEnum):
        if value.number not in _NUMBERS[value.what]:
            raise ModelError(f"the graph uses {value.what} {value.number}, which is not supported; export in float32")
        return _NUMBERS[value.what][value.number]
    return device if isinstance(value, NetworkDevice) else value
