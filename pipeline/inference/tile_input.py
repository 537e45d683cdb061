"""Tile cutter: normalised tiles of a strip, in the number format and memory layout of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.inference.normalize import InputTransform
from pipeline.inference.transfer import DeviceChunk, DeviceStrip


class TileCutter:
    """Makes batches of model input for one network."""

    def __init__(
        self, transform: InputTransform, *, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        """Bind a scene's input transform to the input format of a network.

        Args:
            transform: raw pixels to model input.
            device: where strips are.
            dtype: number format of the tiles; they are normalised in float32 in any case.
            layout: memory layout of the tiles.
        """
        self._device, self._dtype, self._layout = device, dtype, layout
        self._gain, self._bias = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
            for values in (transform.gain, transform.bias)
        )
        self._is_identity = set(transform.gain) == {1.0} and set(transform.bias) == {0.0}
        self._clip = transform.clip

    def cut(self, strip: DeviceStrip, lefts: Sequence[int], width: int, *, size: int) -> Tensor:
        """Cut a batch.

        Args:
            strip: tiles span all of its rows.
            lefts: strip column of each tile's first pixel; at most `size`, at least one.
            width: columns of a tile.
            size: tiles of the batch; the last tile fills the remaining places.

        Returns:
            `(size, bands, rows, width)` model input, 0 where pixels are not real data.
        """
        shape = (len(strip.chunks[0].pixels), strip.raw.shape[0], width)
        tiles = torch.empty((size, *shape), dtype=self._dtype, device=self._device, memory_format=self._layout)
        if self._takes_planes:
            self._normalise(strip, lefts, tiles[: len(lefts)])
        else:
            self._rearrange(strip, lefts, tiles)
        if len(lefts) < size:
            tiles[len(lefts) :] = tiles[len(lefts) - 1].clone()
        return tiles

    @property
    def _takes_planes(self) -> bool:
        return self._dtype == torch.float32 and self._layout == torch.contiguous_format

    def _rearrange(self, strip: DeviceStrip, lefts: Sequence[int], tiles: Tensor) -> None:
        """Write tiles in the network's format by way of float32 planes, which stay in a CPU's cache."""
        group = 1 if self._device.type == "cpu" else len(lefts)
        planes = torch.empty((group, *tiles.shape[1:]), device=self._device)
        for first in range(0, len(lefts), group):
            part = lefts[first : first + group]
            self._normalise(strip, part, planes[: len(part)])
            # Two steps, since torch converts slowly while it rearranges.
            tiles[first : first + len(part)].copy_(planes[: len(part)].to(self._dtype))

    def _normalise(self, strip: DeviceStrip, lefts: Sequence[int], planes: Tensor) -> None:
        """Write tiles of model input, `(N, bands, rows, columns)` float32."""
        for plane, left in zip(planes, lefts, strict=True):
            for chunk in strip.chunks:
                rows, dst, src = _overlap(chunk, left, planes.shape[3])
                if dst.start < dst.stop:
                    plane[:, rows, dst].copy_(chunk.pixels[:, :, src])
        if not self._is_identity:
            planes.mul_(self._gain).add_(self._bias)
        if self._clip is not None:
            planes.clamp_(*self._clip)
        if any(chunk.valid is not None for chunk in strip.chunks):
            for plane, left in zip(planes, lefts, strict=True):
                _blank(strip, left, plane)


def _blank(strip: DeviceStrip, left: int, plane: Tensor) -> None:
    """Set pixels that are not real data to 0, the mean of standardised data."""
    for chunk in strip.chunks:
        rows, dst, src = _overlap(chunk, left, plane.shape[2])
        if chunk.valid is not None and dst.start < dst.stop:
            plane[:, rows, dst].masked_fill_(~chunk.valid[:, src], 0.0)


def _overlap(chunk: DeviceChunk, left: int, width: int) -> tuple[slice, slice, slice]:
    """Rows and columns of a tile that lie in a chunk, and the columns of the chunk; empty if there are none."""
    height, across = chunk.pixels.shape[1:]
    start, stop = max(chunk.left, left), min(chunk.left + across, left + width)
    return (
        slice(chunk.top, chunk.top + height),
        slice(start - left, stop - left),
        slice(start - chunk.left, stop - chunk.left),
    )
