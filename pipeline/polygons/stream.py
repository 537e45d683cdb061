"""Vectorization of a mosaic to whole polygons, block by block.

Blocks are classified, labelled and traced in threads, a block row at a time. Components that touch no
seam are finished at once; pieces on seams are united by a union-find on the components along the
seam, wait until no block below can add to them, and are then joined edge by edge. Memory holds two
block rows and the polygons that are still open, never all polygons. The polygons do not depend on
the block size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.concurrency import usable_cpus
from pipeline.errors import SettingsError
from pipeline.grid import RasterGrid, measure_on_ground
from pipeline.model import ModelCard
from pipeline.mosaic import TOP_LEVEL, Classification, LevelType, classify_multilabel, resolve_threshold
from pipeline.polygons.block_seams import SeamJoiner
from pipeline.polygons.blocks import BlockPieces, FinishedComponents, TracingRule, trace_block
from pipeline.polygons.holes import HoleFilter, without_holes
from pipeline.polygons.shaping import PolygonBatch, PolygonSpec
from pipeline.polygons.tracing.components import Components
from pipeline.polygons.tracing.outlines import Rings, Seams, closed_rings

SIMPLIFY_BLOCK = 2048
"""Side of blocks when borders are simplified, px: fixed, since vertices on seams stay."""
BATCH_VERTICES = 200_000
"""A batch ends with the polygon that reaches this many vertices."""


MAX_WORKERS = 8
"""Largest useful number of threads: one builds the polygons of finished components."""


class ClassifiedScene(NamedTuple):
    """Pixels that are classified already."""

    read: Callable[[Window], Sequence[Classification]]
    """The classifications of a window, the same number for each; called from several threads at once."""
    grid: RasterGrid
    """Of the scene."""
    top: int
    """The level of probability 1."""


class LevelSource(Protocol):
    """A source of probabilities; `read_levels` is called from several threads at once."""

    @property
    def grid(self) -> RasterGrid:
        """Of the scene."""

    @property
    def card(self) -> ModelCard:
        """Of the model: classes, activation and threshold."""

    @property
    def levels(self) -> int:
        """The level that means probability 1."""

    def read_levels(self, window: Window) -> NDArray[np.uint8 | np.uint16]:
        """`(classes, height, width)` levels 0..`levels`; the largest value of the type is invalid."""


def vectorize(
    source: LevelSource, spec: PolygonSpec, *, block_size: int = 2048, workers: int = 0
) -> Iterator[PolygonBatch]:
    """The whole polygons of a mosaic, on the pixel plane, lazily.

    With the default spec `rasterize(polygons) == mask`, exactly. The set of polygons does not depend on
    `block_size` and `workers`. Polygons come in the order of the block rows in which they end, within
    those in the order of their first pixel.

    Args:
        source: of the probabilities.
        spec: threshold, holes, simplifying, connectivity; `shape_polygons` applies the minimum area.
        block_size: side of a block in pixels, at least 1.
        workers: threads; 0 = one for each processor that this process may use, up to `MAX_WORKERS`.

    Raises:
        SettingsError: the block size is below 1, or the threshold does not suit the model.
    """
    resolve_threshold(source.card, spec.threshold, source.levels)

    def read(window: Window) -> list[Classification]:
        return list(classify_multilabel(source.read_levels(window), source.card, spec.threshold, top=source.levels))

    scene = ClassifiedScene(read, source.grid, source.levels)
    return vectorize_classifications(scene, spec, block_size=block_size, workers=workers)


def vectorize_classifications(
    scene: ClassifiedScene, spec: PolygonSpec, *, block_size: int = 2048, workers: int = 0
) -> Iterator[PolygonBatch]:
    """The whole polygons of pixels that are classified already; otherwise as `vectorize`.

    Args:
        scene: its classified pixels.
        spec: holes, simplifying, connectivity.
        block_size: as for `vectorize`.
        workers: as for `vectorize`.
    """
    if block_size < 1 or workers < 0:
        raise SettingsError(f"block_size must be >= 1 and workers >= 0, not {block_size} and {workers}")
    workers = workers or min(usable_cpus(), MAX_WORKERS)
    return _batches(scene, spec, SIMPLIFY_BLOCK if spec.simplify_m else block_size, workers)


def compile_kernels(grid: RasterGrid, spec: PolygonSpec, kind: LevelType) -> None:
    """Compile the kernels that `vectorize` needs for a mosaic, or load them from numba's cache.

    It takes seconds once for an installation and a kind of processor; a run does it while it infers.

    Args:
        grid: of the mosaic.
        spec: of the polygons.
        kind: of the mosaic's levels.
    """
    mask = np.pad(np.ones((4, 4), np.uint8), 1)
    level = mask.astype(np.uint8 if kind == "uint8" else np.uint16)
    grid = replace(grid, height=mask.shape[0], width=mask.shape[1])

    def read(window: Window) -> list[Classification]:
        rows, cols = window.toslices()
        return [Classification(mask=mask[rows, cols], level=level[rows, cols])]

    for _ in _batches(ClassifiedScene(read, grid, TOP_LEVEL[kind]), spec, block_size=3, workers=1):
        pass


def _batches(scene: ClassifiedScene, spec: PolygonSpec, block_size: int, workers: int) -> Iterator[PolygonBatch]:
    rule = _resolve_rule(scene.grid, spec)
    joiners: dict[int, SeamJoiner] = {}
    with ThreadPoolExecutor(workers, "vectorize") as pool:
        rows = _block_rows(scene, rule, block_size, pool)
        count = -(-scene.grid.height // block_size)
        try:
            for row, blocks in enumerate(rows, start=1):
                finished = []
                for layer, pieces in enumerate(zip(*blocks, strict=True)):
                    joiner = joiners.setdefault(layer, SeamJoiner(block_size, rule))
                    finished += [block.whole for block in pieces]
                    finished.append(joiner.add_row(pieces, is_last=row == count))
                yield from build_batches(finished, scene.top, spec.connectivity)
        finally:
            pool.shutdown(cancel_futures=True)


def _resolve_rule(grid: RasterGrid, spec: PolygonSpec) -> TracingRule:
    rule = TracingRule(connectivity=spec.connectivity)
    if spec.simplify_m:
        across_m, down_m = pixel_sides_m(grid)
        rule = replace(rule, tolerance=(spec.simplify_m / across_m, spec.simplify_m / down_m))
    if spec.fill_holes_m2:
        rule = replace(rule, holes=HoleFilter.of(grid, spec.fill_holes_m2))
    return rule


def pixel_sides_m(grid: RasterGrid) -> tuple[float, float]:
    """True lengths of the centre pixel's sides, along a row and along a column."""
    row, col = grid.height // 2, grid.width // 2
    # A side is half the difference of two perimeters: a pixel doubled along it has two more of that side.
    corners = [((0, 0), (w, 0), (w, h), (0, h)) for w, h in ((1, 1), (2, 1), (1, 2))]
    pixels = [shapely.Polygon([grid.transform @ (col + x, row + y) for x, y in each]) for each in corners]
    _, perimeter_m = measure_on_ground(pixels, grid.crs)
    return float(perimeter_m[1] - perimeter_m[0]) / 2, float(perimeter_m[2] - perimeter_m[0]) / 2


def _block_rows(
    scene: ClassifiedScene, rule: TracingRule, block_size: int, pool: Executor
) -> Iterator[list[list[BlockPieces]]]:
    """The pieces of each block of a row, for each classification; the next row is traced concurrently."""
    height, width = scene.grid.shape
    ahead: deque[list[Future[list[BlockPieces]]]] = deque()
    for top in range(0, height, block_size):
        windows = [
            Window(left, top, min(block_size, width - left), min(block_size, height - top))
            for left in range(0, width, block_size)
        ]
        ahead.append([pool.submit(_trace_window, scene, rule, window) for window in windows])
        # One row is traced while the caller joins the row before it.
        if len(ahead) == 2:
            yield [future.result() for future in ahead.popleft()]
    while ahead:
        yield [future.result() for future in ahead.popleft()]


def _trace_window(scene: ClassifiedScene, rule: TracingRule, window: Window) -> list[BlockPieces]:
    """Read one block, and trace each of its classifications."""
    seams = Seams(
        top=window.row_off > 0,
        bottom=window.row_off + window.height < scene.grid.height,
        left=window.col_off > 0,
        right=window.col_off + window.width < scene.grid.width,
    )
    origin = (int(window.row_off), int(window.col_off))
    return [trace_block(classification, seams, origin, rule) for classification in scene.read(window)]


def build_batches(finished: Sequence[FinishedComponents], top: int, connectivity: int) -> Iterator[PolygonBatch]:
    """Sort whole components by the first pixel of their feature, and build the polygons.

    Args:
        finished: components of any blocks and classifications.
        top: the level of probability 1.
        connectivity: 4: a polygon per component; 8: a multipolygon per feature.
    """
    table, rings, feature = _joined(finished)
    if not len(table):
        return

    # Rows of the output: one per component, or one per feature when 8-connected.
    order, sorted_feature = _feature_order(table, feature)
    features = table.select(order)
    if connectivity == 8:
        features = features.merged(sorted_feature, int(sorted_feature[-1]) + 1)

    # For each row the end of its components in `order`; for each component its first ring.
    part_end = np.searchsorted(sorted_feature, np.arange(len(features)), side="right")
    ring_of_part = np.searchsorted(rings.owner, np.arange(len(table) + 1))

    # A batch ends where the running number of vertices passes a multiple of `BATCH_VERTICES`.
    vertices = np.cumsum(np.diff(rings.start[ring_of_part])[order])
    ends = np.flatnonzero(np.diff(vertices[part_end - 1] // BATCH_VERTICES, append=-1)) + 1
    for begin, end in zip((0, *ends[:-1]), ends, strict=True):
        rows = slice(begin, end)
        parts = order[part_end[begin - 1] if begin else 0 : part_end[end - 1]]
        geometry = _polygons(rings, ring_of_part[parts], ring_of_part[parts + 1])
        if connectivity == 8:
            sizes = np.diff(part_end[rows], prepend=part_end[begin - 1] if begin else 0)
            geometry = shapely.multipolygons(geometry, indices=np.repeat(np.arange(end - begin), sizes))
        yield PolygonBatch(
            geometry=geometry,
            class_value=features.value[rows],
            pixel_count=features.count[rows],
            mean_probability=features.total[rows] / (features.count[rows] * top),
            max_probability=features.peak[rows] / top,
        )


def _joined(finished: Sequence[FinishedComponents]) -> tuple[Components, Rings, NDArray[np.int64]]:
    """All components, their rings without the filled holes, and numbers that are unique to each feature."""
    begin = np.cumsum([0, *(len(part.table) for part in finished)])[:-1]
    placed = list(zip(finished, begin, strict=True))
    rings = Rings.concatenate([part.rings.shifted(at) for part, at in placed])
    filled = np.concatenate([part.filled for part in finished])
    if len(filled):
        rings = without_holes(rings, filled)
    feature = np.concatenate([np.unique(part.feature, return_inverse=True)[1] + at for part, at in placed])
    return Components.concatenate([part.table for part in finished]), rings, feature


def _feature_order(table: Components, feature: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Components by the first pixel of their feature, and the rank of the feature of each in that order."""
    first = np.full(len(table), np.iinfo(np.int64).max)
    np.minimum.at(first, feature, table.first)
    order = np.lexsort((table.first, table.value, first[feature]))
    return order, np.cumsum(np.diff(feature[order], prepend=feature[order[0]]) != 0)


def _polygons(rings: Rings, begin: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.object_]:
    """Polygons of the rings `begin[k]:end[k]` each; the first ring is the shell."""
    polygon_start = np.concatenate(([0], np.cumsum(end - begin)))
    ring = np.arange(polygon_start[-1]) + np.repeat(begin - polygon_start[:-1], end - begin)
    ring_start = np.concatenate(([0], np.cumsum(rings.sizes[ring] + 1)))
    xy = closed_rings(rings, ring, ring_start)
    result: NDArray[np.object_] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, xy, (ring_start, polygon_start)
    )
    return result
