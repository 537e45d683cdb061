"""One scene from file to mosaic, step by step and timed: describe, plan, check the precision, infer, join.

It is what `pipeline.segment.segment_scene` does before the polygons, and needs no more than torch, numpy, rasterio,
dask, shapely, pydantic, PyYAML and safetensors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.inference import RegionJob, TilingSpec, choose_precision, infer_region, plan_regions, plan_tiles
from pipeline.inference.batch_size import resolve_batch_size
from pipeline.inference.region import join_regions
from pipeline.inference.tiling import resolve_tiling
from pipeline.model import InferenceSpec
from pipeline.model.predictor import LoadedModel, identity_of
from pipeline.mosaic import MosaicSpec
from pipeline.scene import describe_scene


@dataclass(frozen=True, kw_only=True)
class PathTimes:
    """What one scene took from file to mosaic."""

    precision: str
    """The number format that the scene's own pixels proved."""
    prepare_s: float
    """Describe, plan, check the precision."""
    infer_s: float
    """From the first pixel read to the last row of the plain rasters written."""
    cog_s: float
    """Plain rasters to finished COGs with overviews."""
    core_s: float
    """Seconds of CPU time of all threads together."""
    tiles: int
    """Tiles that went through the network."""
    tile_mpx: float
    """Their input pixels, overlaps counted again, in millions."""
    scene_mpx: float
    """Pixels of the scene, in millions."""

    @property
    def seconds(self) -> float:
        """File to mosaic."""
        return self.prepare_s + self.infer_s + self.cog_s


Shape = tuple[int, int, int, int]
"""`(N, bands, H, W)` of a batch."""


def batch_shape(scene_path: Path, predictor: LoadedModel, tiling: TilingSpec) -> Shape:
    """The shape of every batch of a scene."""
    card = predictor.card
    scene = describe_scene(scene_path, card=card)
    plan = plan_tiles(scene.grid.shape, resolve_tiling(tiling, card, exact=False))
    height, width = plan.rows.tile, plan.cols.tile
    size = resolve_batch_size(predictor.device, height * width, max_size=plan.shape[1])
    return size, len(card.bands), height, width


def file_to_mosaic(
    scene_path: Path,
    predictor: LoadedModel,
    folder: Path,
    *,
    tiling: TilingSpec,
    inference: InferenceSpec | None = None,
    decoding_threads: int = 0,
) -> PathTimes:
    """Write `probability.tif` and `mask.tif` of a scene into an existing, empty folder."""
    clock, core_s = [time.perf_counter()], time.process_time()
    card = predictor.card
    scene = describe_scene(scene_path, card=card)
    plan = plan_tiles(scene.grid.shape, resolve_tiling(tiling, card, exact=False))
    precision = choose_precision(scene, plan, card, predictor).precision
    job = RegionJob(
        scene=scene,
        plan=plan,
        card=card,
        identity=identity_of(predictor),
        blend="hann",
        inference=inference or InferenceSpec(),
        precision=precision,
        mosaic=MosaicSpec(),
        threshold=None,
        threads=decoding_threads,
        tags={},
        folder=folder / "regions",
    )
    job.folder.mkdir()
    clock.append(time.perf_counter())
    results = [infer_region(job, region, predictor) for region in plan_regions(plan, rows=1)]
    clock.append(time.perf_counter())
    join_regions(job, results, folder)
    clock.append(time.perf_counter())
    tiles = sum(result.tiles_run for result in results)
    prepare_s, infer_s, cog_s = (after - before for before, after in pairwise(clock))
    return PathTimes(
        precision=precision,
        prepare_s=prepare_s,
        infer_s=infer_s,
        cog_s=cog_s,
        core_s=time.process_time() - core_s,
        tiles=tiles,
        tile_mpx=tiles * plan.rows.tile * plan.cols.tile / 1e6,
        scene_mpx=scene.grid.height * scene.grid.width / 1e6,
    )
