"""The stages of a scene, in the work folder: what each leaves, and by what it is known again.

    plan, regions --> infer --> mosaic --> polygons
                                mosaic --> mask --> preview

Each has the key of what went into it, so that only what a change concerns is done anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference import RegionJob, RegionResult, plan_blend_weights
from pipeline.inference.region import join_regions, merge_quicklooks, raster_profiles, read_quicklook, wanted_tiles
from pipeline.model.predictor import PrecisionCheck
from pipeline.mosaic import read_mask, write_mask
from pipeline.polygons import PolygonSpec, PolygonTotals
from pipeline.results import StageRecords, stage_key, write_preview

OUTPUTS = {
    "probability": "probability.tif",
    "mask": "mask.tif",
    "polygons": "polygons.gpkg",
    "preview": "preview.png",
}
COUNTS = ("tiles_run", "tiles_skipped", "valid_pixels", "regions_split")
"""What is summed up over the regions."""
QUICKLOOK = "glance.npy"
"""The scene at screen size, in the work folder."""


@dataclass(frozen=True, kw_only=True)
class InferenceResult:
    """What the regions of a scene came to; it pickles, so that the rest can be done elsewhere."""

    job: RegionJob
    """What they had in common."""
    proof: PrecisionCheck
    """The precision they ran in, and why."""
    results: tuple[RegionResult, ...] = ()
    """What each left; none where the mosaic is there already."""
    tiles_run: int = 0
    """Tiles that went through the network."""
    tiles_skipped: int = 0
    """Tiles without a valid pixel."""
    valid_pixels: int = 0
    """Pixels that are not nodata."""
    regions_split: int = 0
    """Regions that ran in narrower parts."""
    reused: tuple[str, ...] = ()
    """What was done before."""
    seconds: Mapping[str, float]
    """Wall time of each stage."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was made of the regions."""

    totals: PolygonTotals
    """Polygons written."""
    reused: tuple[str, ...] = ()
    """What was done before."""
    seconds: Mapping[str, float]
    """Wall time of each stage."""


class SceneWork:
    """A scene's work folder, in which each stage is done once."""

    def __init__(self, result: Path) -> None:
        """`result` is the folder of the outputs; beside it lies what only the work itself needs."""
        result = result.absolute()  # workers may have another current folder
        self.result, self.folder, self.stages = result, result.parent, StageRecords(result.parent)
        self.reused: list[str] = []

    def once(
        self, stage: str, key: str | None, make: Callable[[], Mapping[str, object] | None], file: Path
    ) -> Mapping[str, Any]:
        """The facts of a stage: known from its record, or of what is made now and recorded."""
        found = self.stages.find(stage, key)
        if found is not None:
            self.reused.append(stage)
            return found
        file.unlink(missing_ok=True)  # it may be a link to that of the former result, which stays as it is
        facts = make() or {}
        self.stages.record(stage, key, facts, [file])
        return facts

    def output(self, kind: str) -> Path:
        """The file of an output."""
        return self.result / OUTPUTS[kind]

    def digests(self) -> dict[str, str]:
        """What is recorded of the outputs."""
        return {path.name: digest for path, digest in self.stages.digests().items() if path.parent == self.result}

    def sizes(self) -> dict[str, int]:
        """Bytes of the outputs."""
        return {name: (self.result / name).stat().st_size for name in OUTPUTS.values()}


def find_inferred(work: SceneWork, job: RegionJob) -> InferenceResult | None:
    """What the regions came to, where the mosaic is there already."""
    facts: Mapping[str, Any] | None = work.stages.find("infer", job.key)
    if facts is None or work.stages.find("mosaic", job.key) is None:
        return None
    proof = PrecisionCheck(**facts["proof"])
    return InferenceResult(job=replace(job, precision=proof.precision), proof=proof, seconds={}, **facts["counts"])


def record_inferred(
    work: SceneWork, job: RegionJob, proof: PrecisionCheck, results: Sequence[RegionResult]
) -> InferenceResult:
    """Sum up all regions, and keep their glances as one.

    Raises:
        TransientError: the disk refuses.
    """
    counts = {name: sum(getattr(result, name) for result in results) for name in COUNTS}
    glance = work.folder / QUICKLOOK
    np.save(glance, merge_quicklooks([result.glance for result in results]))
    work.stages.record("infer", job.key, {"proof": asdict(proof), "counts": counts}, [glance])
    return InferenceResult(job=job, proof=proof, results=tuple(map(_lightly, results)), seconds={}, **counts)


def _lightly(result: RegionResult) -> RegionResult:
    """A result without the pixels of its glance: they are in the work folder, and need not travel."""
    return replace(result, glance=replace(result.glance, pixels=result.glance.pixels[:, :0, :0]))


def make_rasters(work: SceneWork, inferred: InferenceResult, threshold: float | None) -> None:
    """The stages `mosaic` and `mask`; the rasters of the regions go when both are there.

    Args:
        work: the work folder.
        inferred: what the regions left.
        threshold: decides the mask.
    """
    job, results = inferred.job, inferred.results

    def make_mask() -> None:
        if results and job.threshold == threshold:
            join_regions(job, results, work.result, ["mask"])
        else:
            form = raster_profiles(job, job.scene.grid)["mask"]
            write_mask(work.output("probability"), work.output("mask"), form, threshold=threshold)

    def make_mosaic() -> None:
        join_regions(job, results, work.result, ["probability"])

    work.once("mosaic", job.key, make_mosaic, work.output("probability"))
    work.once("mask", mask_key(job.key, threshold), make_mask, work.output("mask"))
    _forget_regions(work, job)


def make_polygons(
    work: SceneWork, key: str | None, spec: PolygonSpec, make: Callable[[], PolygonTotals]
) -> PolygonTotals:
    """The stage `polygons`."""
    facts = work.once("polygons", polygons_key(key, spec), lambda: asdict(make()), work.output("polygons"))
    return PolygonTotals(**facts)


def make_preview(work: SceneWork, inferred: InferenceResult, threshold: float | None) -> None:
    """The stage `preview`."""

    def make() -> None:
        glance = _glance(work, inferred)
        write_preview(work.output("preview"), glance, *read_mask(work.output("mask"), glance.shape[1:]))

    work.once("preview", mask_key(inferred.job.key, threshold), make, work.output("preview"))


def record_outputs(work: SceneWork, job: RegionJob, spec: PolygonSpec, totals: PolygonTotals) -> None:
    """Record every stage at once, where a worker elsewhere has made all of them.

    Raises:
        TransientError: the disk refuses.
    """
    of_mask = mask_key(job.key, spec.threshold)
    work.stages.record("mosaic", job.key, {}, [work.output("probability")])
    work.stages.record("mask", of_mask, {}, [work.output("mask")])
    work.stages.record("polygons", polygons_key(job.key, spec), asdict(totals), [work.output("polygons")])
    work.stages.record("preview", of_mask, {}, [work.output("preview")])
    _forget_regions(work, job)


def _forget_regions(work: SceneWork, job: RegionJob) -> None:
    work.stages.discard("region*")
    shutil.rmtree(job.folder, ignore_errors=True)


def _glance(work: SceneWork, inferred: InferenceResult) -> NDArray[np.generic]:
    kept, job = work.folder / QUICKLOOK, inferred.job
    if kept.is_file():
        pixels: NDArray[np.generic] = np.load(kept, allow_pickle=False)
        return pixels
    window, cores = job.scene.grid.window, (plan_blend_weights(axis, "crop") for axis in (job.plan.rows, job.plan.cols))
    wanted = None if job.area is None else wanted_tiles(job.area, window, *cores)
    return read_quicklook(job.scene, job.plan, job.threads, wanted)


def polygons_key(key: str | None, spec: PolygonSpec) -> str | None:
    """The key of the stage `polygons`, from that of the mosaic."""
    return stage_key(key, asdict(spec))


def mask_key(key: str | None, threshold: float | None) -> str | None:
    """The key of the stages `mask` and `preview`, from that of the mosaic."""
    return None if key is None else stage_key(key, str(threshold))
