"""Strips in, probabilities of tiles out, on one device.

Tiles are cut from a strip and normalised on the device, in batches of one size: short ones are filled up, so a
tile's result never depends on how work was split. A CPU runs batches in several lanes; other devices take them as
fast as Python can name them. Every output is checked before it is believed.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.batches import RawStrip
from pipeline.card import ModelCard
from pipeline.cutting import TileCutter
from pipeline.errors import ModelError, WorldError
from pipeline.lanes import AHEAD, in_order
from pipeline.normalize import InputTransform
from pipeline.predictor import ArrayFunction, Predictor, Ready, as_predictor
from pipeline.transfer import LoadedStrip, Transfer

log = logging.getLogger(__name__)

ROUNDING = 1e-4
"""Probabilities may leave 0..1 by this much before they are refused."""
RESULT_BYTES = 256 * 2**20
"""Probabilities of batches that wait to be blended; bounds the memory of many classes."""
ALONE_PIXELS = 2**16
"""A CPU runs tiles of so many pixels one at a time: in batches they are no quicker."""
_TILE_PIXELS = {"cpu": 2**18, "cuda": 2**22, "mps": 2**20}
"""Pixels of a full batch when `batch_size` is 0."""

Member = tuple[Ready, InputTransform]
"""A network of an ensemble, ready to run, and what it makes of this scene's raw pixels."""


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
    """Tiles of one strip that are run together."""

    strip: LoadedStrip
    """Where they are cut from."""
    positions: tuple[int, ...]
    """Which tiles of the row; none when no tile of the strip is wanted and holds a valid pixel."""
    ends_strip: bool
    """True for the last batch of a strip."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the networks made of a batch."""

    batch: TileBatch
    """The batch."""
    tiles: tuple[Tensor, ...]
    """`(classes, h, w)` float32 probabilities of each of its tiles, on the device."""


class Engine:
    """Runs the networks of one model over raw strips on one device."""

    def __init__(
        self,
        members: Sequence[Member],
        card: ModelCard,
        row: TileRow,
        transfer: Transfer,
        *,
        batch_size: int,
        least: int = 1,
        lanes: int = 1,
        threads: int = 1,
    ):
        """Bind networks to one scene.

        Args:
            members: the networks, all on one device; their probabilities are averaged.
            card: what goes in and comes out.
            row: the tiles of every strip.
            transfer: brings strips to the device.
            batch_size: tiles per forward pass, at least 1; halved when memory runs out.
            least: what it is not halved below.
            lanes: batches that a CPU runs at once.
            threads: threads that torch may use in each lane.
        """
        self._card, self._device = card, members[0][0].device
        self._row, self._transfer = row, transfer
        self._size, self._least, self._halving = batch_size, least, threading.Lock()
        self._lanes, self._threads = lanes, threads
        forms = {(transform, ready.dtype, ready.layout) for ready, transform in members}
        cutters = {
            (transform, dtype, layout): TileCutter(transform, device=self._device, dtype=dtype, layout=layout)
            for transform, dtype, layout in forms
        }
        self._members = [(ready, cutters[transform, ready.dtype, ready.layout]) for ready, transform in members]
        self.range = RangeCheck(self._device)

    def run(self, strips: Iterable[RawStrip]) -> Iterator[Predicted]:
        """Predict the tiles that are wanted and hold a valid pixel, in plan order; a strip ends with a batch, if empty.

        Raises:
            ModelError: an output is of a wrong shape or range.
            WorldError: not even one tile fits into memory.
        """
        batches = self._batches(strips)
        if self._device.type != "cpu":
            return map(self._run, batches)
        return in_order(self._run, batches, lanes=self._lanes, threads=self._threads, ahead=self._ahead())

    def _batches(self, strips: Iterable[RawStrip]) -> Iterator[TileBatch]:
        for raw in strips:
            strip, size = self._transfer.load(raw), self._size
            lefts = self._lefts(raw)
            asked = range(len(lefts)) if raw.tiles is None else raw.tiles
            wanted = [k for k in asked if raw.any_valid(slice(lefts[k], lefts[k] + self._row.width))]
            for first in range(0, max(1, len(wanted)), size):
                positions = tuple(wanted[first : first + size])
                yield TileBatch(strip=strip, positions=positions, ends_strip=first + size >= len(wanted))

    def _lefts(self, strip: RawStrip) -> list[int]:
        """Strip column of each tile's first pixel."""
        return [left - strip.left for left in self._row.lefts]

    def _ahead(self) -> int:
        """Batches under way in all lanes, fewer where their probabilities are large."""
        height = self._row.height - 2 * self._card.margin
        width = self._row.width - 2 * self._card.margin
        batch_bytes = 4 * self._size * len(self._card.classes) * height * width
        return max(self._lanes, min(AHEAD * self._lanes, RESULT_BYTES // batch_bytes))

    @torch.inference_mode()
    def _run(self, batch: TileBatch) -> Predicted:
        """Run a batch, in parts where memory does not take it as a whole."""
        lefts, tiles = self._lefts(batch.strip.raw), list[Tensor]()
        while len(tiles) < len(batch.positions):
            size = self._size
            part = [lefts[k] for k in batch.positions[len(tiles) :][:size]]
            probabilities = self._try(batch.strip, part, size)
            if probabilities is None:
                self._halve(size)
            else:
                tiles += probabilities[: len(part)]
        return Predicted(batch=batch, tiles=tuple(tiles))

    def _try(self, strip: LoadedStrip, lefts: Sequence[int], size: int) -> Tensor | None:
        """`(size, classes, h, w)` mean probabilities, or None when memory ran out."""
        try:
            return self._probabilities(strip, lefts, size)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if size < 2 * self._least:
                raise _no_room(size) from error
        return None

    def _probabilities(self, strip: LoadedStrip, lefts: Sequence[int], size: int) -> Tensor:
        """The running mean of what the members say; members that take the same input share it."""
        mean = torch.empty(0)
        cut: dict[TileCutter, Tensor] = {}
        for count, (ready, cutter) in enumerate(self._members, start=1):
            if cutter not in cut:
                cut = {cutter: cutter.cut(strip, lefts, self._row.width, size=size)}
            probabilities = self._checked(ready(cut[cutter]), cut[cutter])
            mean = probabilities if count == 1 else mean.lerp(probabilities, 1 / count)
        return mean

    def _halve(self, size: int) -> None:
        """Go on in batches of half the size, unless another lane has seen to it."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        with self._halving:
            if self._size < size:
                return
            self._size = size // 2
        log.warning("%s: no memory for %d tiles at once; going on with %d", self._device, size, size // 2)

    def _checked(self, probabilities: Tensor, tiles: Tensor) -> Tensor:
        """Refuse outputs of a wrong shape, NaN, or outside 0..1."""
        n, _, height, width = tiles.shape
        shrink = 2 * self._card.margin
        expected = (n, len(self._card.classes), height - shrink, width - shrink)
        if tuple(probabilities.shape) != expected:
            raise ModelError(
                f"the predictor turned {tuple(tiles.shape)} into {tuple(probabilities.shape)}, but its card "
                f"({len(self._card.classes)} classes, margin {self._card.margin}) promises {expected}"
            )
        self.range.see(probabilities)
        return probabilities.to(self._device)


class RangeCheck:
    """Watches that probabilities lie in 0..1, without waiting for any device but a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Probabilities will be on `device`."""
        self._at_once = device.type == "cpu"
        self._seen: list[Tensor] = []

    def see(self, probabilities: Tensor) -> None:
        """Look at a batch: at once on a CPU; elsewhere its extremes are kept until `take`."""
        extremes = torch.stack(torch.aminmax(probabilities))
        if self._at_once:
            check_range(*extremes.tolist())
        else:
            self._seen.append(extremes)

    @torch.inference_mode()
    def take(self) -> Tensor:
        """`(2,)` on the device: least and largest probability seen since the last call; 0 and 1 if none was."""
        seen, self._seen = self._seen, []
        if not seen:
            return torch.tensor([0.0, 1.0])
        together = torch.stack(seen)
        return torch.stack([together[:, 0].amin(), together[:, 1].amax()])


def check_range(low: float, high: float) -> None:
    """Refuse probabilities whose extremes are NaN or outside 0..1.

    Raises:
        ModelError: they are.
    """
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    what = "NaN" if low != low or high != high else f"values from {low:.4g} to {high:.4g}"
    raise ModelError(
        f"the predictor returned {what} where probabilities in 0..1 are due; "
        "if it returns logits, say so in its card: outputs='logits'"
    )


class PlainReady:
    """A plain function or torch module in the form of a ready network."""

    dtype, layout, device = torch.float32, torch.contiguous_format, torch.device("cpu")

    def __init__(self, predictor: Predictor | ArrayFunction, card: ModelCard) -> None:
        """`card` says what it returns."""
        self._predict = as_predictor(predictor, card)

    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> probabilities."""
        return self._predict(tiles)


def resolve_batch_size(
    device: torch.device, tile_pixels: int, *, asked: int = 0, most: int | None = None, plain: bool = False
) -> int:
    """Tiles per forward pass.

    On a CPU, torch takes other kernels for one tile than for several, which sum in another order. So that the result
    does not follow the setting, a network runs large tiles one at a time there, and never less than two small ones.

    Args:
        device: where they run.
        tile_pixels: of one tile.
        asked: the setting; 0 takes what keeps the device busy: 1 tile of 512 px on a CPU, 16 on CUDA.
        most: tiles in a whole strip of the scene, which no batch exceeds, whatever the region.
        plain: True for a plain function, which gets what was asked for.
    """
    size = asked or max(1, _TILE_PIXELS.get(device.type, _TILE_PIXELS["cpu"]) // tile_pixels)
    if device.type == "cpu" and not plain:
        size = 1 if tile_pixels >= ALONE_PIXELS else max(2, size)
    return size if most is None else min(size, most)


def least_batch_size(device: torch.device, size: int, *, plain: bool, deterministic: bool) -> int:
    """The batch size that `size` may be halved down to without other results than were promised."""
    if deterministic:
        return size
    return min(size, 2) if device.type == "cpu" and not plain else 1


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no room for an allocation."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def _no_room(size: int) -> WorldError:
    if size > 1:
        return WorldError(
            f"no memory for {size} tiles at once, and fewer would not give the same bytes; "
            f"set inference.batch_size={size // 2} or a smaller tiling.tile_size"
        )
    return WorldError("no memory for a single tile; set a smaller tiling.tile_size, or run on a larger machine")
