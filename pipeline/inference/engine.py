"""Inference engine: strips in, probabilities of tiles out, on one device.

Tiles are cut from a strip and normalised on the device, in batches of one size. Short batches are padded, so a tile's
result never depends on how work was split. A CPU runs batches in several worker threads; on other devices one thread
submits them. The shape and range of every output are checked.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.inference.batch_size import Batching, is_out_of_memory, out_of_memory_message
from pipeline.inference.cpu_workers import BATCHES_PER_WORKER, map_in_workers
from pipeline.inference.normalize import InputTransform
from pipeline.inference.output_checks import RangeCheck, check_shape
from pipeline.inference.tile_input import TileCutter
from pipeline.inference.tiling.strips import RawStrip
from pipeline.inference.transfer import DeviceStrip, Transfer
from pipeline.model import ModelCard
from pipeline.model.predictor import Runnable

log = logging.getLogger(__name__)

RESULT_BYTES = 256 * 2**20
"""Probabilities of batches that wait to be blended; bounds the memory of many classes."""

Member = tuple[Runnable, InputTransform]
"""A network of an ensemble and the normalisation of the scene's raw pixels for it."""


@dataclass(frozen=True, kw_only=True)
class TileRow:
    """What the tiles of every strip of a region have in common."""

    lefts: tuple[int, ...]
    """Scene column of each window's first pixel, from left to right."""
    height: int
    """Rows of a window."""
    width: int
    """Columns of a window."""


@dataclass(frozen=True, kw_only=True)
class TileBatch:
    """Tiles of one strip in one forward pass."""

    strip: DeviceStrip
    """The strip."""
    positions: tuple[int, ...]
    """Positions of the tiles in the row; empty if the strip has no wanted tile with a valid pixel."""
    ends_strip: bool
    """True for the last batch of a strip."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Output of the networks for a batch."""

    batch: TileBatch
    """The batch."""
    tiles: tuple[Tensor, ...]
    """`(classes, h, w)` float32 probabilities of each of its tiles, on the device."""


class Engine:
    """Runs the networks of one model over raw strips on one device."""

    def __init__(
        self, members: Sequence[Member], card: ModelCard, row: TileRow, transfer: Transfer, batching: Batching
    ) -> None:
        """Bind networks to one scene.

        Args:
            members: the networks, all on one device; their probabilities are averaged.
            card: of the model.
            row: the tiles of every strip.
            transfer: brings strips to the device.
            batching: batch size and worker threads.
        """
        self._card, self._device = card, members[0][0].device
        self._row, self._transfer, self._batching = row, transfer, batching
        self._size, self._halving = batching.batch_size, threading.Lock()
        # Members with the same normalisation, number format and layout share one cutter, and so their input.
        forms = {(transform, ready.dtype, ready.layout) for ready, transform in members}
        cutters = {
            (transform, dtype, layout): TileCutter(transform, device=self._device, dtype=dtype, layout=layout)
            for transform, dtype, layout in forms
        }
        self._members = [(ready, cutters[transform, ready.dtype, ready.layout]) for ready, transform in members]
        self.range_check = RangeCheck(self._device)

    def run(self, strips: Iterable[RawStrip]) -> Iterator[Predicted]:
        """Predict the wanted tiles with a valid pixel, in plan order; every strip ends with a batch, maybe empty."""
        batches = self._batches(strips)
        if self._device.type != "cpu":
            return map(self._run, batches)
        workers, threads = self._batching.workers, self._batching.threads
        return map_in_workers(self._run, batches, workers=workers, threads=threads, ahead=self._ahead(workers))

    def _batches(self, strips: Iterable[RawStrip]) -> Iterator[TileBatch]:
        for raw in strips:
            strip, size = self._transfer.to_device(raw), self._size
            lefts = self._lefts(raw)

            # A strip without such tiles still yields one empty batch: its end finishes rows.
            asked = range(len(lefts)) if raw.tiles is None else raw.tiles
            wanted = [k for k in asked if raw.any_valid(slice(lefts[k], lefts[k] + self._row.width))]
            for first in range(0, max(1, len(wanted)), size):
                positions = tuple(wanted[first : first + size])
                yield TileBatch(strip=strip, positions=positions, ends_strip=first + size >= len(wanted))

    def _lefts(self, strip: RawStrip) -> list[int]:
        """Strip column of each tile's first pixel."""
        return [left - strip.left for left in self._row.lefts]

    def _ahead(self, workers: int) -> int:
        """Batches in progress in all workers, fewer where their probabilities are large."""
        height = self._row.height - 2 * self._card.margin
        width = self._row.width - 2 * self._card.margin
        batch_bytes = 4 * self._size * len(self._card.classes) * height * width
        return max(workers, min(BATCHES_PER_WORKER * workers, RESULT_BYTES // batch_bytes))

    @torch.inference_mode()
    def _run(self, batch: TileBatch) -> Predicted:
        """Run a batch, in parts if memory does not suffice."""
        lefts, tiles = self._lefts(batch.strip.raw), list[Tensor]()
        while len(tiles) < len(batch.positions):
            # Read anew each time: another worker thread may have halved it.
            size = self._size
            part = [lefts[k] for k in batch.positions[len(tiles) :][:size]]
            probabilities = self._try(batch.strip, part, size)
            if probabilities is None:
                self._halve(size)
            else:
                tiles += probabilities[: len(part)]
        return Predicted(batch=batch, tiles=tuple(tiles))

    def _try(self, strip: DeviceStrip, lefts: Sequence[int], size: int) -> Tensor | None:
        """`(size, classes, h, w)` mean probabilities, or None when memory ran out."""
        try:
            return self._probabilities(strip, lefts, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size < 2 * self._batching.min_batch_size:
                raise out_of_memory_message(size) from error
        return None

    def _probabilities(self, strip: DeviceStrip, lefts: Sequence[int], size: int) -> Tensor:
        """The running mean over the members; members with the same input share it."""
        mean = torch.empty(0)
        cut: dict[TileCutter, Tensor] = {}
        for count, (ready, cutter) in enumerate(self._members, start=1):
            # Only the last input is kept, to bound memory.
            if cutter not in cut:
                cut = {cutter: cutter.cut(strip, lefts, self._row.width, size=size)}
            probabilities = ready(cut[cutter])
            check_shape(probabilities, cut[cutter], self._card)
            self.range_check.add(probabilities)
            probabilities = probabilities.to(self._device)
            # Running mean m_k = m_{k-1} + (p_k - m_{k-1}) / k.
            mean = probabilities if count == 1 else mean.lerp(probabilities, 1 / count)
        return mean

    def _halve(self, size: int) -> None:
        """Halve the batch size, unless another worker thread did."""
        # Tensors of the failed batch are freed before the cache returns their memory to the device.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        with self._halving:
            if self._size < size:
                return
            self._size = size // 2
        log.warning("%s: no memory for %d tiles at once; going on with %d", self._device, size, size // 2)
