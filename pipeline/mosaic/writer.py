"""Mosaic writer: `probability.tif` and `mask.tif` as Cloud-Optimized GeoTIFFs.

The rows of a region go to plain GeoTIFFs, compressed in their final form, with overviews in files of
their own (`strips`). When all regions are done, their blocks are put in the order of a COG (`cog`), and
only blocks that straddle two regions are encoded again. The result does not depend on the regions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import TransientError
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.mosaic.classify import classify
from pipeline.mosaic.cog import CogLevel, TiffPart, write_levels
from pipeline.mosaic.levels import BLOCK, TOP_LEVEL, LevelType, as_integers, stored_nodata
from pipeline.mosaic.overviews import overview_count
from pipeline.mosaic.palette import class_colour
from pipeline.mosaic.reader import CARD_TAG, MosaicReader
from pipeline.mosaic.strips import RasterProfile, StripWriter, create_level, level_path, on_success, open_level

MASK_NODATA = 255
"""Nodata in `mask.tif`."""
WRITE_QUEUE_DEPTH = 2
"""Strips that may wait for the disk; bounds the memory of writing."""


@dataclass(frozen=True, kw_only=True)
class MosaicSpec:
    """How mosaics are stored."""

    dtype: LevelType = "uint8"
    """`uint8`: steps of 1/254; `uint16`: steps of 1/65534; `float32`: as computed."""
    compress: Literal["zstd", "deflate"] = "zstd"
    """zstd is smaller and faster; deflate opens in software older than 2019."""


def probability_profile(grid: RasterGrid, card: ModelCard, spec: MosaicSpec, tags: Mapping[str, str]) -> RasterProfile:
    """Profile of `probability.tif`: a band per class, scaled so that GIS tools show 0..1."""
    return RasterProfile(
        grid=grid,
        dtype=spec.dtype,
        nodata=stored_nodata(spec.dtype),
        names=card.classes,
        compress=spec.compress,
        scale=1.0 if spec.dtype == "float32" else 1.0 / TOP_LEVEL[spec.dtype],
        tags=(*sorted(tags.items()), (CARD_TAG, replace(card, training={}).to_json())),
    )


def mask_profile(grid: RasterGrid, card: ModelCard, spec: MosaicSpec, tags: Mapping[str, str]) -> RasterProfile:
    """Profile of `mask.tif`: class values, 0 = no class, 255 = nodata, with a colour table."""
    values = sorted({value for _, value, _ in card.foreground})
    colours = {0: (235, 235, 235, 255), MASK_NODATA: (255, 255, 255, 255)} | {
        v: (*class_colour(k), 255) for k, v in enumerate(values)
    }
    legend = {f"CLASS_{value}": name for _, value, name in card.foreground}
    return RasterProfile(
        grid=grid,
        dtype="uint8",
        nodata=MASK_NODATA,
        names=("class",),
        compress=spec.compress,
        colours=colours,
        tags=(*sorted(tags.items()), *sorted(legend.items())),
    )


class MosaicWriter:
    """Writes the probabilities of a region and their mask in threads, with a bounded queue."""

    def __init__(
        self,
        probability: tuple[Path, RasterProfile],
        mask: tuple[Path, RasterProfile],
        *,
        card: ModelCard,
        threshold: float | None,
        overviews: int,
    ):
        """Create the files.

        Args:
            probability: path and profile of the probabilities.
            mask: path and profile of the classes.
            card: gives classes and threshold.
            threshold: replaces the card's; None = the card's.
            overviews: levels below the full size, as many as the whole scene has.
        """
        self._card, self._threshold = card, threshold
        self._stack = ExitStack()
        self._probability, self._mask = (
            self._stack.enter_context(StripWriter(path, profile, overviews=overviews))
            for path, profile in (probability, mask)
        )
        self._top = TOP_LEVEL[probability[1].dtype]  # type: ignore[index]
        # The stack unwinds backwards: pending writes are waited for, then threads end, then files close.
        self._threads = [self._stack.enter_context(ThreadPoolExecutor(1, name)) for name in ("probability", "mask")]
        self._pending: deque[Future[None]] = deque()
        on_success(self._stack, lambda: self._wait(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, stored: NDArray[np.generic]) -> None:
        """Append `(classes, rows, width)` as stored; the array is read until two more writes have returned.

        Raises:
            TransientError: the disk refused these rows or earlier ones.
        """
        for thread, work in zip(self._threads, (self._probability.write, self._classify), strict=True):
            self._pending.append(thread.submit(work, stored))
        self._wait(WRITE_QUEUE_DEPTH * len(self._threads))

    def _classify(self, stored: NDArray[np.generic]) -> None:
        self._mask.write(classify(as_integers(stored), self._card, self._threshold, top=self._top)[None])

    def _wait(self, max_pending: int) -> None:
        """Wait until at most `max_pending` writes are pending."""
        while len(self._pending) > max_pending:
            self._pending.popleft().result()


@contextmanager
def cog_writer(target: Path, profile: RasterProfile) -> Iterator[StripWriter]:
    """A writer of rows, top to bottom; when the body ends without an error, they become the COG `target`.

    Raises:
        TransientError: the disk is full or not writable.
    """
    overviews = overview_count(profile.grid.shape, BLOCK)
    with _temporary_levels(target.with_name(f"{target.name}.rows.tif"), overviews) as path:
        with StripWriter(path, profile, overviews=overviews) as writer:
            yield writer
        write_cog([(path, profile.grid.window)], target, profile)


def write_cog(parts: Sequence[tuple[Path, Window]], target: Path, profile: RasterProfile) -> None:
    """Join the rasters of regions, and their overviews, as one COG.

    Args:
        parts: the raster that a StripWriter made of each region, and its window; the windows partition the scene.
        target: the COG.
        profile: of the COG.

    Raises:
        TransientError: the disk is full or not writable.
    """
    overviews = overview_count(profile.grid.shape, BLOCK)
    # The blocks of the first `moved` levels lie in one region each and are copied undecoded.
    moved = next((k for k in range(overviews + 1) if not _aligned_to_blocks(parts, k)), overviews + 1)
    try:
        with _temporary_levels(target.with_name(f"{target.name}.whole.tif"), overviews) as whole:
            levels = [_copied_level(parts, whole, profile, k) for k in range(moved)]
            levels += _encoded_levels(parts, whole, profile, range(moved, overviews + 1))
            write_levels(target, levels)
    except (RasterioError, OSError) as error:
        raise TransientError(f"{target}: writing failed: {error}; is the disk full?") from error


@contextmanager
def _temporary_levels(path: Path, overviews: int) -> Iterator[Path]:
    """Yield the path; its levels are removed in the end."""
    try:
        yield path
    finally:
        for level in range(overviews + 1):
            level_path(path, level).unlink(missing_ok=True)


def _aligned_to_blocks(parts: Sequence[tuple[Path, Window]], level: int) -> bool:
    """True where no block of a level holds pixels of two regions."""
    side = BLOCK << level
    return all(window.row_off % side == 0 == window.col_off % side for _, window in parts)


def _copied_level(parts: Sequence[tuple[Path, Window]], whole: Path, profile: RasterProfile, level: int) -> CogLevel:
    """A level whose blocks are those of the regions."""
    create_level(whole, profile, level, empty=True).close()
    side = BLOCK << level
    return CogLevel(
        template=level_path(whole, level),
        parts=tuple(
            TiffPart(path=level_path(path, level), row=window.row_off // side, col=window.col_off // side)
            for path, window in parts
        ),
    )


def _encoded_levels(
    parts: Sequence[tuple[Path, Window]], whole: Path, profile: RasterProfile, levels: range
) -> Iterator[CogLevel]:
    """Levels in which regions meet inside blocks: the first is joined, the others are computed from it."""
    if not levels:
        return
    with StripWriter(whole, profile, overviews=len(levels) - 1, level=levels[0]) as writer:
        for rows in _read_joined(parts, levels[0]):
            writer.write(rows)
    for level in levels:
        path = level_path(whole, level)
        yield CogLevel(template=path, parts=(TiffPart(path=path, row=0, col=0),))


def write_mask(mosaic: Path, target: Path, profile: RasterProfile, *, threshold: float | None) -> None:
    """Compute `mask.tif` again from a mosaic; the same bytes as inference writes with this threshold.

    Raises:
        TransientError: the disk is full or not writable.
    """
    with MosaicReader(mosaic) as source, cog_writer(target, profile) as writer:
        for top in range(0, source.grid.height, BLOCK):
            rows = min(BLOCK, source.grid.height - top)
            levels = source.read_levels(Window(0, top, source.grid.width, rows))
            writer.write(classify(levels, source.card, threshold, top=source.levels)[None])


def _read_joined(parts: Sequence[tuple[Path, Window]], level: int) -> Iterator[NDArray[np.generic]]:
    """Yield `(bands, <= BLOCK, width)` of a level of the whole, top to bottom; regions start on its pixels."""
    for top in sorted({window.row_off for _, window in parts}):
        neighbours = sorted((window.col_off, path) for path, window in parts if window.row_off == top)
        with ExitStack() as stack:
            opened = [stack.enter_context(open_level(path, level)) for _, path in neighbours]
            for first in range(0, opened[0].height, BLOCK):
                rows = min(BLOCK, opened[0].height - first)
                pieces = [piece.read(window=Window(0, first, piece.width, rows)) for piece in opened]
                yield np.concatenate(pieces, axis=2)
