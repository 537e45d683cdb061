"""Load balancing: how many scenes run concurrently, and how many regions each is cut into.

Workers of one kind take equally long for equally many tiles, so one region per worker is fastest: every border between
regions costs one more row of tiles. A tall scene gets two regions per worker, so that a fast worker can take a region
that a slow one has not started.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from pipeline.distribute.client import threads_of, workers_of
from pipeline.distribute.spec import DistributeSpec
from pipeline.inference import CROP, Region, RegionJob, plan_regions
from pipeline.inference.region import max_region_columns
from pipeline.inference.tiling import plan_parts
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import LoadedModel

if TYPE_CHECKING:
    from distributed import Client

PART_PIXELS, PART_PIXELS_ON_DEVICE = 2**25, 2**28
"""Approximate pixels of a region in this process, on CPUs or on a device; a kill loses at most one region. On a cluster
a region has at most the larger number."""
MIN_ROWS_PER_REGION = 16
"""Minimum rows of tiles of a region where each worker gets two."""


def share_workers(
    spec: DistributeSpec, client: Client, scenes: int, *, max_scenes: int | None = None
) -> tuple[int, DistributeSpec]:
    """Scenes that are processed concurrently, at most `max_scenes`, and the settings of each with that number."""
    count = scene_count(spec, client, scenes)
    count = count if max_scenes is None else min(max_scenes, count)
    return count, replace(spec, scenes=count)


def scene_count(spec: DistributeSpec, client: Client | None, scenes: int) -> int:
    """Scenes that are processed concurrently, at least 1: some are vectorized while others are inferred."""
    if client is None:
        return 1
    return max(1, min(scenes, spec.scenes or threads_of(client) + 1))


def plan_local_regions(job: RegionJob, predictor: Predictor | ArrayFunction, *, rows: int = 0) -> tuple[Region, ...]:
    """The regions of a scene in this process; without a number of rows, of a size that limits what a kill loses."""
    if rows:
        return _plan_rows(job, rows)
    on_cpus = not isinstance(predictor, LoadedModel) or predictor.device.type == "cpu"
    pixels = PART_PIXELS if on_cpus else PART_PIXELS_ON_DEVICE
    return plan_parts(job.plan, pixels=pixels, max_columns=_max_columns(job), core_only=job.blend in CROP)


def plan_cluster_regions(job: RegionJob, spec: DistributeSpec, client: Client) -> tuple[Region, ...]:
    """The regions of a scene on a cluster: one or more per worker, unless the settings say how many."""
    rows, plan = spec.regions, job.plan
    if not rows:
        largest = plan.rows.length * min(plan.cols.length, _max_columns(job)) / PART_PIXELS_ON_DEVICE
        rows = max(region_count(len(plan.rows.starts), workers_of(client), spec.scenes), ceil(largest))
    return _plan_rows(job, rows)


def _plan_rows(job: RegionJob, rows: int) -> tuple[Region, ...]:
    return plan_regions(job.plan, rows=rows, max_columns=_max_columns(job), core_only=job.blend in CROP)


def _max_columns(job: RegionJob) -> int:
    return max_region_columns(job.scene, job.plan, job.card, job.mosaic)


def region_count(tile_rows: int, workers: int, scenes: int) -> int:
    """Regions that a scene is cut into from top to bottom.

    Args:
        tile_rows: rows of tiles of the scene.
        workers: of the cluster.
        scenes: processed concurrently, which share the workers; 0 is 1.

    >>> region_count(25, workers=2, scenes=1), region_count(64, workers=2, scenes=1)
    (2, 4)
    >>> region_count(25, workers=8, scenes=17)
    1
    """
    each = -(-workers // max(1, scenes))
    return 2 * each if each > 1 and tile_rows >= 2 * each * MIN_ROWS_PER_REGION else each
