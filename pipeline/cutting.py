"""Tiles cut from a strip on the device, normalised, in the number format and memory order that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.normalize import InputTransform
from pipeline.transfer import LoadedStrip


class TileCutter:
    """Makes batches of model input for one network."""

    def __init__(
        self, transform: InputTransform, *, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        """Bind a scene's input transform to what the network takes.

        Args:
            transform: raw pixels to model input.
            device: where strips are.
            dtype: number format of the tiles; they are normalised in float32 whatever it is.
            layout: memory order of the tiles.
        """
        self._device, self._dtype, self._layout = device, dtype, layout
        self._gain, self._bias = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
            for values in (transform.gain, transform.bias)
        )
        self._as_it_is = set(transform.gain) == {1.0} and set(transform.bias) == {0.0}
        self._clip = transform.clip

    def cut(self, strip: LoadedStrip, lefts: Sequence[int], width: int, *, size: int) -> Tensor:
        """Cut a batch.

        Args:
            strip: tiles span all of its rows.
            lefts: strip column of each tile's first pixel; at most `size`, at least one.
            width: columns of a tile.
            size: tiles of the batch; places that are left over repeat the last tile.

        Returns:
            `(size, bands, rows, width)` model input, 0 where pixels are not real data.
        """
        bands, rows = len(strip.pieces[0].pixels), strip.raw.shape[0]
        tiles = torch.empty(
            (size, bands, rows, width), dtype=self._dtype, device=self._device, memory_format=self._layout
        )
        planes = None if self._takes_planes else torch.empty((bands, rows, width), device=self._device)
        for tile, left in zip(tiles, lefts, strict=False):
            if planes is None:
                self._normalise(strip, left, tile)
                continue
            self._normalise(strip, left, planes)
            # Two steps, for torch converts slowly while it rearranges.
            tile.copy_(planes.to(self._dtype))
        if len(lefts) < size:
            tiles[len(lefts) :] = tiles[len(lefts) - 1].clone()
        return tiles

    @property
    def _takes_planes(self) -> bool:
        return self._dtype == torch.float32 and self._layout == torch.contiguous_format

    def _normalise(self, strip: LoadedStrip, left: int, tile: Tensor) -> None:
        """Write one tile of model input, `(bands, rows, columns)` float32."""
        width = tile.shape[2]
        partly = False
        for piece in strip.pieces:
            dst, src = _overlap(piece.left, piece.pixels.shape[2], left, width)
            if dst.start < dst.stop:
                tile[:, piece.top : piece.top + piece.pixels.shape[1], dst].copy_(piece.pixels[:, :, src])
                partly = partly or piece.valid is not None
        if not self._as_it_is:
            tile.mul_(self._gain).add_(self._bias)
        if self._clip is not None:
            tile.clamp_(*self._clip)
        if partly:
            self._blank(strip, left, tile)

    def _blank(self, strip: LoadedStrip, left: int, tile: Tensor) -> None:
        """Set what is not real data to 0, the mean of standardised data."""
        for piece in strip.pieces:
            dst, src = _overlap(piece.left, piece.pixels.shape[2], left, tile.shape[2])
            if piece.valid is not None and dst.start < dst.stop:
                tile[:, piece.top : piece.top + len(piece.valid), dst].masked_fill_(~piece.valid[:, src], 0.0)


def _overlap(piece_left: int, piece_width: int, left: int, width: int) -> tuple[slice, slice]:
    """Columns that a piece and a tile share, as slices of the tile and of the piece; empty if they share none."""
    start, stop = max(piece_left, left), min(piece_left + piece_width, left + width)
    return slice(start - left, stop - left), slice(start - piece_left, stop - piece_left)
