"""Batches in, probabilities out, on one device.

A strip of raw pixels goes to the device once, tiles are cut and normalised there, short batches are
padded to full size (so a tile's result never depends on how work was split), and every output is
checked before it is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batches import RawStrip
from pipeline.card import ModelCard
from pipeline.errors import ModelError
from pipeline.normalize import InputTransform
from pipeline.predictor import ArrayFunction, Predictor, as_predictor

ROUNDING = 1e-4
"""Probabilities may leave 0..1 by this much before they are refused."""
_TILE_PIXELS = {"cpu": 2**18, "cuda": 2**22, "mps": 2**20}
"""Pixels of a full batch when `batch_size` is 0."""


class Engine:
    """Runs a predictor over raw strips on one device."""

    def __init__(
        self,
        predictor: Predictor | ArrayFunction,
        card: ModelCard,
        transform: InputTransform,
        *,
        device: torch.device,
        batch_size: int = 0,
    ):
        """Bind a predictor to its card and to one scene's input transform.

        Args:
            predictor: a torch module or LoadedPredictor, or a plain function on numpy arrays or tensors.
            card: what goes in and comes out.
            transform: raw pixels to model input.
            device: where tiles are cut and normalised.
            batch_size: tiles per call; 0 chooses.
        """
        self.card, self.device, self._batch_size = card, device, batch_size
        self._predict = as_predictor(predictor, card)
        self._gain, self._bias = (
            torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (transform.gain, transform.bias)
        )
        self._as_it_is = set(transform.gain) == {1.0} and set(transform.bias) == {0.0}
        self._clip = transform.clip

    @torch.inference_mode()
    def run_strip(
        self, strip: RawStrip, lefts: Sequence[int], tile: tuple[int, int], *, most: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Predict the tiles of a strip that hold a valid pixel.

        Args:
            strip: raw pixels of one row of tiles.
            lefts: scene column of each tile window's first pixel.
            tile: `(height, width)` of the windows.
            most: tiles of a whole strip of the scene; no batch is larger.

        Yields:
            `(position in lefts, (classes, h, w) probabilities)`, left to right.
        """
        height, width = tile
        places = [left - strip.left for left in lefts]
        wanted = [k for k, place in enumerate(places) if strip.valid[:, place : place + width].any()]
        if not wanted:
            return
        pixels = _to_tensor(strip.pixels).to(self.device, non_blocking=True)
        valid = None
        if not strip.valid.all():
            valid = torch.from_numpy(strip.valid).to(self.device, non_blocking=True)
        size = self._batch_size or resolve_batch_size(self.device, height * width)
        size = min(size, most)
        for first in range(0, len(wanted), size):
            batch = wanted[first : first + size]
            padded = batch + batch[-1:] * (size - len(batch))
            windows = [slice(places[k], places[k] + width) for k in padded]
            tiles = self._cut(pixels, valid, windows)
            probabilities = self._checked(self._predict(tiles), tiles)
            yield from zip(batch, probabilities, strict=False)

    def _cut(self, pixels: Tensor, valid: Tensor | None, windows: Sequence[slice]) -> Tensor:
        """Tiles of a strip as model input, float32; `valid` None means that every pixel is."""
        bands, height, _ = pixels.shape
        width = windows[0].stop - windows[0].start
        tiles = torch.empty((len(windows), bands, height, width), device=self.device)
        for tile, window in zip(tiles, windows, strict=True):
            tile.copy_(pixels[:, :, window])
        if not self._as_it_is:
            tiles.mul_(self._gain).add_(self._bias)
        if self._clip is not None:
            tiles.clamp_(*self._clip)
        if valid is not None:
            invalid = ~torch.stack([valid[:, window] for window in windows])
            if invalid.any():
                tiles.masked_fill_(invalid[:, None], 0.0)
        return tiles

    def _checked(self, probabilities: Tensor, tiles: Tensor) -> Tensor:
        """Refuse outputs of a wrong shape, NaN, or outside 0..1."""
        n, _, height, width = tiles.shape
        shrink = 2 * self.card.margin
        expected = (n, len(self.card.classes), height - shrink, width - shrink)
        if tuple(probabilities.shape) != expected:
            raise ModelError(
                f"the predictor turned {tuple(tiles.shape)} into {tuple(probabilities.shape)}, but its card "
                f"({len(self.card.classes)} classes, margin {self.card.margin}) promises {expected}"
            )
        low, high = (float(v) for v in torch.aminmax(probabilities))
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            what = "NaN" if low != low or high != high else f"values from {low:.4g} to {high:.4g}"
            raise ModelError(
                f"the predictor returned {what} where probabilities in 0..1 are due; "
                "if it returns logits, say so in its card: outputs='logits'"
            )
        return probabilities.to(self.device)


def resolve_batch_size(device: torch.device, tile_pixels: int) -> int:
    """Tiles per forward pass that keep a device busy: 1 of 512 px on a CPU, 16 on CUDA."""
    return max(1, _TILE_PIXELS.get(device.type, _TILE_PIXELS["cpu"]) // tile_pixels)


def _to_tensor(pixels: NDArray[np.generic]) -> Tensor:
    """A tensor of the same values; types torch computes poorly with become float32."""
    if pixels.dtype.name not in ("uint8", "int16", "uint16", "int32", "float32"):
        pixels = pixels.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels))
