"""How work is shared out: so many scenes in hand, each cut into so many regions.

Workers of one kind need equally long for equally many tiles, so one region for each worker is the quickest cut: every
border between regions costs a row of tiles more. Where a scene has rows to spare, two for each let a quick worker take
what a slow one has not begun.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from pipeline.distribute.client import threads_of, workers_of
from pipeline.distribute.spec import DistributeSpec
from pipeline.inference import CROP, Region, RegionJob, plan_regions
from pipeline.inference.region import widest_region
from pipeline.inference.tiling import plan_parts
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import LoadedModel

if TYPE_CHECKING:
    from distributed import Client

PART_PIXELS, PART_PIXELS_ON_DEVICE = 2**25, 2**28
"""About so many pixels are a region in this process, on its CPUs or on a device: what a kill may lose. A region on a
cluster has no more than the larger."""
FINE_ROWS = 16
"""Rows of tiles that each of two regions of a worker has at least."""


def share_workers(
    spec: DistributeSpec, client: Client, scenes: int, *, most: int | None = None
) -> tuple[int, DistributeSpec]:
    """How many scenes of a run are in hand at once, at most so many, and the settings of each, which say so."""
    found = scene_count(spec, client, scenes)
    in_hand = found if most is None else min(most, found)
    return in_hand, replace(spec, scenes=in_hand)


def scene_count(spec: DistributeSpec, client: Client | None, scenes: int) -> int:
    """How many scenes of a run are in hand at once, at least 1: while some become polygons, others are inferred."""
    if client is None:
        return 1
    return max(1, min(scenes, spec.scenes or threads_of(client) + 1))


def plan_work(
    job: RegionJob, predictor: Predictor | ArrayFunction, spec: DistributeSpec, client: Client | None
) -> tuple[Region, ...]:
    """The regions a scene is cut into: for workers to share, or here so that a stopped run has something done."""
    plan, alone = job.plan, job.blend in CROP
    widest = widest_region(job.scene, plan, job.card, job.mosaic)
    if client is None and not spec.regions:
        on_cpus = not isinstance(predictor, LoadedModel) or predictor.device.type == "cpu"
        pixels = PART_PIXELS if on_cpus else PART_PIXELS_ON_DEVICE
        return plan_parts(plan, pixels=pixels, widest=widest, alone=alone)
    rows = spec.regions
    if client is not None and not rows:
        largest = plan.rows.length * min(plan.cols.length, widest) / PART_PIXELS_ON_DEVICE
        rows = max(region_count(len(plan.rows.starts), workers_of(client), spec.scenes), ceil(largest))
    return plan_regions(plan, rows=rows, widest=widest, alone=alone)


def region_count(tile_rows: int, workers: int, scenes: int) -> int:
    """How many regions a scene is cut into from top to bottom.

    Args:
        tile_rows: rows of tiles of the scene.
        workers: of the cluster.
        scenes: in hand at once, which share them; 0 is 1.

    >>> region_count(25, workers=2, scenes=1), region_count(64, workers=2, scenes=1)
    (2, 4)
    >>> region_count(25, workers=8, scenes=17)
    1
    """
    each = -(-workers // max(1, scenes))
    return 2 * each if each > 1 and tile_rows >= 2 * each * FINE_ROWS else each
