"""Transfer of strips to the device and of finished rows to the host.

On a CPU nothing is copied. For CUDA, pixels pass through pinned buffers that are allocated once and reused, on a
separate stream; only the next user of a buffer waits for its copy:

    chunks ──host──▶ pinned strip ──copy stream──▶ device strip ──▶ (the engine) ──▶ levels
                                                                                       │
    writer ◀──host── pinned rows ◀──────────────────copy stream──────────────────────◀─┘

At most two strips and a few sets of finished rows are in flight, which bounds how far Python runs ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.tiling.strips import DecodedChunk, RawStrip
from pipeline.mosaic import LevelType, stored_nodata

STRIPS_IN_FLIGHT = 2
"""Strips that may be on the device at once."""
_KEPT_TYPES = ("uint8", "int16", "uint16", "int32", "float32")
"""Pixel types that torch converts on every device; others become float32 on the host."""


@dataclass(frozen=True, kw_only=True)
class DeviceChunk:
    """A rectangle of a strip on the device."""

    top: int
    """Strip row of its first row."""
    left: int
    """Strip column of its first column."""
    pixels: Tensor
    """`(bands, rows, columns)` raw."""
    valid: Tensor | None
    """`(rows, columns)` bool, True = real data; None where every pixel is."""


@dataclass(frozen=True, kw_only=True)
class DeviceStrip:
    """A strip whose pixels are on the device."""

    raw: RawStrip
    """The strip on the host."""
    chunks: tuple[DeviceChunk, ...]
    """Partition the windows of the tiles that are wanted."""

    def validity(self, rows: slice, cols: slice) -> Tensor | None:
        """`(rows, columns)` bool of a window, True = real data, on the device; None where every pixel is."""
        if all(chunk.valid is None for chunk in self.chunks):
            return None
        valid = torch.ones(self.raw.shape, dtype=torch.bool, device=self.chunks[0].pixels.device)
        for chunk in self.chunks:
            if chunk.valid is not None:
                height, width = chunk.valid.shape
                valid[chunk.top : chunk.top + height, chunk.left : chunk.left + width] = chunk.valid
        return valid[rows, cols]


class FinishedRows(Protocol):
    """Rows in transfer from the device."""

    def wait(self) -> tuple[NDArray[np.generic], tuple[float, float]]:
        """`(classes, rows, columns)` as stored, and their smallest and largest probability."""
        ...


class Transfer(Protocol):
    """Moves pixels between the host and one device."""

    device: torch.device
    """The device."""
    rows_in_flight: int
    """Sets of finished rows in transfer while the next are computed."""

    def to_device(self, strip: RawStrip) -> DeviceStrip:
        """Copy a strip to the device; no work on the previous strip may be submitted after that."""
        ...

    def to_host(self, rows: Tensor, extremes: Tensor) -> FinishedRows:
        """Copy finished rows `(classes, rows, columns)` to the host, with the smallest and largest probability, `(2,)`.

        The memory of a set is reused `rows_in_flight` + 3 sets later: the writer reads up to three.
        """
        ...


@dataclass(frozen=True)
class _HostRows:
    rows: NDArray[np.generic]
    extremes: tuple[float, float]

    def wait(self) -> tuple[NDArray[np.generic], tuple[float, float]]:
        return self.rows, self.extremes


def blank_rows(shape: tuple[int, int, int], stored: LevelType) -> FinishedRows:
    """Rows that are all nodata, `(classes, rows, columns)`, made on the host."""
    return _HostRows(np.full(shape, stored_nodata(stored), stored), (0.0, 1.0))


class DirectTransfer:
    """Transfer for a CPU, which shares memory, or a device with synchronous copies; chunks stay as decoded."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.rows_in_flight = device, 0

    def to_device(self, strip: RawStrip) -> DeviceStrip:
        """See `Transfer.to_device`."""
        return DeviceStrip(raw=strip, chunks=tuple(self._load(chunk) for chunk in strip.chunks))

    def to_host(self, rows: Tensor, extremes: Tensor) -> FinishedRows:
        """See `Transfer.to_host`."""
        low, high = extremes.tolist()
        return _HostRows(rows.cpu().numpy(), (low, high))

    def _load(self, chunk: DecodedChunk) -> DeviceChunk:
        pixels = np.asarray(chunk.pixels, torch_type(chunk.pixels.dtype))
        valid = None if chunk.valid is None else torch.from_numpy(chunk.valid).to(self.device)
        return DeviceChunk(top=chunk.top, left=chunk.left, pixels=torch.from_numpy(pixels).to(self.device), valid=valid)


class CudaTransfer:
    """Transfer for CUDA: pinned buffers and one copy stream per direction."""

    def __init__(
        self, device: torch.device, *, strip: tuple[int, int, int], dtype: str, rows: tuple[int, int, int], stored: str
    ) -> None:
        """Allocate every buffer.

        Args:
            device: a CUDA device.
            strip: bands, rows and columns of a strip.
            dtype: numpy name of its pixel type.
            rows: classes, rows and columns of the largest set of finished rows.
            stored: numpy name of their type.
        """
        self.device, self.rows_in_flight = device, STRIPS_IN_FLIGHT
        self._upward, self._downward = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self._strips = [_StripBuffer(strip, torch_type(np.dtype(dtype)), device) for _ in range(STRIPS_IN_FLIGHT)]
        self._loaded = 0
        self._rows = [_RowBuffer(rows, np.dtype(stored)) for _ in range(self.rows_in_flight + 3)]
        self._fetched = 0

    def to_device(self, strip: RawStrip) -> DeviceStrip:
        """See `Transfer.to_device`."""
        if not strip.chunks:
            return DeviceStrip(raw=strip, chunks=())

        # All work on the previous strip is submitted by now: once it has run, that strip's buffer is free.
        computing = torch.cuda.current_stream(self.device)
        self._strips[self._loaded % STRIPS_IN_FLIGHT].used.record(computing)
        self._loaded += 1
        buffer = self._strips[self._loaded % STRIPS_IN_FLIGHT]
        chunk = buffer.fill(strip, self._upward)
        computing.wait_event(buffer.copied)
        return DeviceStrip(raw=strip, chunks=(chunk,))

    def to_host(self, rows: Tensor, extremes: Tensor) -> FinishedRows:
        """See `Transfer.to_host`."""
        buffer = self._rows[self._fetched % len(self._rows)]
        self._fetched += 1
        buffer.fill(rows, extremes, self._downward)
        return buffer


class _StripBuffer:
    """Buffers of one strip on the host and on the device."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[np.generic], device: torch.device) -> None:
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        self._pinned, self._pinned_valid = pinned(shape, torch_dtype), pinned(shape[1:], torch.bool)
        self.on_device = torch.empty(shape, dtype=torch_dtype, device=device)
        self._valid_on_device = torch.empty(shape[1:], dtype=torch.bool, device=device)
        self.copied, self.used = (torch.cuda.Event() for _ in range(2))  # type: ignore[no-untyped-call]

    def fill(self, strip: RawStrip, stream: torch.cuda.Stream) -> DeviceChunk:
        """Copy a strip to the device, once the previous copy has ended."""
        self.copied.synchronize()
        pixels, valid = self._pinned.numpy(), self._pinned_valid.numpy()
        partly = any(chunk.valid is not None for chunk in strip.chunks)
        for chunk in strip.chunks:
            height, width = chunk.pixels.shape[1:]
            dst = slice(chunk.top, chunk.top + height), slice(chunk.left, chunk.left + width)
            pixels[:, *dst] = chunk.pixels
            if partly:
                valid[dst] = True if chunk.valid is None else chunk.valid
        with torch.cuda.stream(stream):
            # The device memory may be overwritten only when the engine has read the strip before it.
            stream.wait_event(self.used)
            self.on_device.copy_(self._pinned, non_blocking=True)
            if partly:
                self._valid_on_device.copy_(self._pinned_valid, non_blocking=True)
            self.copied.record(stream)
        return DeviceChunk(top=0, left=0, pixels=self.on_device, valid=self._valid_on_device if partly else None)


class _RowBuffer:
    """Buffer of one set of finished rows on the host."""

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[np.generic]) -> None:
        self._pinned = pinned(shape, torch.from_numpy(np.empty(0, dtype)).dtype)
        self._pinned_extremes = pinned((2,), torch.float32)
        self._shape = shape
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def fill(self, rows: Tensor, extremes: Tensor, stream: torch.cuda.Stream) -> None:
        """Start the copy from the device, after the work that computes the rows."""
        self._shape = (rows.shape[0], rows.shape[1], rows.shape[2])
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            self._view().copy_(rows, non_blocking=True)
            self._pinned_extremes.copy_(extremes, non_blocking=True)
            self._copied.record(stream)
        # torch's allocator must not reuse this memory before the copy stream has read it.
        for tensor in (rows, extremes):
            if tensor.is_cuda:
                tensor.record_stream(stream)

    def wait(self) -> tuple[NDArray[np.generic], tuple[float, float]]:
        self._copied.synchronize()
        low, high = self._pinned_extremes.tolist()
        return self._view().numpy(), (low, high)

    def _view(self) -> Tensor:
        """The contiguous part of the buffer that the rows take; gaps would make the copy synchronous."""
        return self._pinned.view(-1)[: math.prod(self._shape)].view(self._shape)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Page-locked host memory, which a CUDA device copies asynchronously."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def torch_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type in which pixels of a stored type are passed to torch.

    >>> torch_type(np.dtype("uint16")).name, torch_type(np.dtype("float64")).name
    ('uint16', 'float32')
    """
    return dtype if dtype.name in _KEPT_TYPES else np.dtype(np.float32)
