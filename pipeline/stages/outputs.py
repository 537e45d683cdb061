"""Output stages of a scene in its work folder, each recorded under a key of its inputs.

    plan, regions --> infer --> mosaic --> polygons
                                mosaic --> mask --> preview

A stage runs again only if its key changes, that is, if one of its inputs does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.distribute import ProgressCallback
from pipeline.inference import RegionJob, RegionResult, plan_blend_weights
from pipeline.inference.region import join_regions, merge_quicklooks, raster_profiles, read_quicklook, wanted_tiles
from pipeline.model.predictor import PrecisionCheck
from pipeline.mosaic import read_mask, write_mask
from pipeline.polygons import PolygonSpec, PolygonTotals
from pipeline.results import OUTPUTS, StageRecords, stage_key, write_preview
from pipeline.scene import Scene
from pipeline.stages.region_records import precision_check

COUNTS = ("tiles_run", "tiles_skipped", "valid_pixels", "regions_split")
"""Counters that are summed over the regions."""
QUICKLOOK = "glance.npy"
"""The scene at screen size, in the work folder."""
REGIONS = "regions"
"""Folder of the regions' rasters, in the work folder."""
MakeOutputs = Callable[["InferenceResult", PolygonSpec, "SceneStages", ProgressCallback | None], "SceneOutputs"]
"""Runs the output stages in a work folder; pickles by its name."""


@dataclass(frozen=True, kw_only=True)
class InferenceResult:
    """The result of a scene's regions; it pickles, so that the output stages can run on another machine."""

    job: RegionJob
    """What the regions have in common."""
    check: PrecisionCheck
    """The precision of the run, and why it was chosen."""
    results: tuple[RegionResult, ...] = ()
    """One per region; empty if the mosaic exists already."""
    tiles_run: int = 0
    """Tiles that ran through the network."""
    tiles_skipped: int = 0
    """Tiles without a valid pixel."""
    valid_pixels: int = 0
    """Pixels that are not nodata."""
    regions_split: int = 0
    """Regions that ran in narrower parts."""
    reused: tuple[str, ...] = ()
    """Stages or regions that an earlier run completed."""
    seconds: Mapping[str, float]
    """Wall time of each stage."""


@dataclass(frozen=True, kw_only=True)
class SceneOutputs:
    """The result of the output stages."""

    totals: PolygonTotals
    """Polygons written."""
    reused: tuple[str, ...] = ()
    """Stages or regions that an earlier run completed."""
    seconds: Mapping[str, float]
    """Wall time of each stage."""


class SceneStages:
    """The stages in a scene's work folder; a completed stage is reused."""

    def __init__(self, result: Path) -> None:
        """`result` is the folder of the outputs; intermediate files lie next to it."""
        result = result.absolute()  # workers may have another current folder
        self.result, self.folder, self.stages = result, result.parent, StageRecords(result.parent)
        self.reused: list[str] = []

    def run_or_reuse(
        self, stage: str, key: str | None, make: Callable[[], Mapping[str, object] | None], file: Path
    ) -> Mapping[str, Any]:
        """The facts of a stage, from its record or from running it now."""
        recorded = self.stages.find(stage, key)
        if recorded is not None:
            self.reused.append(stage)
            return recorded
        file.unlink(missing_ok=True)  # it may be a hard link to the previous result, which must not change
        facts = make() or {}
        self.stages.record(stage, key, facts, [file])
        return facts

    def output(self, kind: str) -> Path:
        """The file of an output."""
        return self.result / OUTPUTS[kind]

    def digests(self) -> dict[str, str]:
        """Recorded SHA-256 of the outputs."""
        return {path.name: digest for path, digest in self.stages.digests().items() if path.parent == self.result}

    def sizes(self) -> dict[str, int]:
        """Bytes of the outputs."""
        return {name: (self.result / name).stat().st_size for name in OUTPUTS.values()}


@dataclass(frozen=True, kw_only=True)
class OutputStages:
    """The output stages of a scene as a task of an executor, see `OutputTask`."""

    make: MakeOutputs
    """Runs the stages."""
    inferred: InferenceResult
    """The result of the regions."""
    spec: PolygonSpec
    """Threshold and shaping."""

    @property
    def scene(self) -> Scene:
        """See `OutputTask`."""
        return self.inferred.job.scene

    def input_files(self) -> Sequence[Path]:
        """See `OutputTask`: the rasters of the regions, and the quicklook."""
        folder = self.inferred.job.folder
        attempts = {raster.attempt for result in self.inferred.results for raster in result.rasters}
        if not attempts:
            return ()
        rasters = [path for path in sorted(folder.iterdir()) if _attempt_of(path) in attempts]
        return (*rasters, folder.parent / QUICKLOOK)

    def run(self, result: Path, progress: ProgressCallback | None) -> SceneOutputs:
        """See `OutputTask`."""
        job = replace(self.inferred.job, folder=result.parent / REGIONS)  # a worker may have a folder of its own
        return self.make(replace(self.inferred, job=job), self.spec, SceneStages(result), progress)

    def record(self, result: Path, outputs: SceneOutputs) -> None:
        """See `OutputTask`.

        Raises:
            TransientError: the disk refuses.
        """
        work, job = SceneStages(result), self.inferred.job
        of_mask, totals = mask_key(job.key, self.spec.threshold), asdict(outputs.totals)
        work.stages.record("mosaic", job.key, {}, [work.output("probability")])
        work.stages.record("mask", of_mask, {}, [work.output("mask")])
        work.stages.record("polygons", polygons_key(job.key, self.spec), totals, [work.output("polygons")])
        work.stages.record("preview", of_mask, {}, [work.output("preview")])
        _discard_regions(work, job)


def _attempt_of(path: Path) -> str:
    """The attempt in a file name that `RegionJob.path` made.

    >>> _attempt_of(Path("probability-00001-1a2b3c4d.2.tif"))
    '1a2b3c4d'
    """
    return path.name.partition(".")[0].rpartition("-")[2]


def find_inference(work: SceneStages, job: RegionJob) -> InferenceResult | None:
    """The recorded result of inference, if the mosaic exists already and the record is valid."""
    facts: Mapping[str, Any] | None = work.stages.find("infer", job.key)
    if facts is None or work.stages.find("mosaic", job.key) is None:
        return None
    try:
        check = precision_check(facts["proof"])
        counts: dict[str, Any] = {name: int(facts["counts"][name]) for name in COUNTS}
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return InferenceResult(job=replace(job, precision=check.precision), check=check, seconds={}, **counts)


def record_inference(
    work: SceneStages, job: RegionJob, check: PrecisionCheck, results: Sequence[RegionResult]
) -> InferenceResult:
    """Sum the counters of all regions, and merge their quicklooks.

    Raises:
        TransientError: the disk refuses.
    """
    counts = {name: sum(getattr(result, name) for result in results) for name in COUNTS}
    quicklook = work.folder / QUICKLOOK
    np.save(quicklook, merge_quicklooks([result.quicklook for result in results]))
    work.stages.record("infer", job.key, {"proof": asdict(check), "counts": counts}, [quicklook])
    return InferenceResult(job=job, check=check, results=tuple(map(_without_quicklook, results)), seconds={}, **counts)


def _without_quicklook(result: RegionResult) -> RegionResult:
    """A result without the pixels of its quicklook, which are in the work folder and need not be pickled."""
    return replace(result, quicklook=replace(result.quicklook, pixels=result.quicklook.pixels[:, :0, :0]))


def make_rasters(work: SceneStages, inferred: InferenceResult, threshold: float | None) -> None:
    """Run the stages `mosaic` and `mask`, then delete the rasters of the regions; `threshold` is that of the mask."""
    job, results = inferred.job, inferred.results

    def make_mask() -> None:
        if results and job.threshold == threshold:
            join_regions(job, results, work.result, ["mask"])
        else:
            form = raster_profiles(job, job.scene.grid)["mask"]
            write_mask(work.output("probability"), work.output("mask"), form, threshold=threshold)

    def make_mosaic() -> None:
        join_regions(job, results, work.result, ["probability"])

    work.run_or_reuse("mosaic", job.key, make_mosaic, work.output("probability"))
    work.run_or_reuse("mask", mask_key(job.key, threshold), make_mask, work.output("mask"))
    _discard_regions(work, job)


def make_polygons(
    work: SceneStages, key: str | None, spec: PolygonSpec, make: Callable[[], PolygonTotals]
) -> PolygonTotals:
    """Run the stage `polygons`."""
    facts = work.run_or_reuse("polygons", polygons_key(key, spec), lambda: asdict(make()), work.output("polygons"))
    area_m2 = facts["area_m2"].items()
    return PolygonTotals(count=int(facts["count"]), area_m2={str(name): float(area) for name, area in area_m2})


def make_preview(work: SceneStages, inferred: InferenceResult, threshold: float | None) -> None:
    """Run the stage `preview`."""

    def make() -> None:
        image = _quicklook(work, inferred)
        write_preview(work.output("preview"), image, *read_mask(work.output("mask"), image.shape[1:]))

    work.run_or_reuse("preview", mask_key(inferred.job.key, threshold), make, work.output("preview"))


def _discard_regions(work: SceneStages, job: RegionJob) -> None:
    work.stages.discard("region*")
    shutil.rmtree(job.folder, ignore_errors=True)


def _quicklook(work: SceneStages, inferred: InferenceResult) -> NDArray[np.generic]:
    saved, job = work.folder / QUICKLOOK, inferred.job
    if saved.is_file():
        pixels: NDArray[np.generic] = np.load(saved, allow_pickle=False)
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
