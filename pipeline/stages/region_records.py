"""Records of completed regions: the plan of a scene's regions, and one record per region."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rasterio.windows import Window

from pipeline.inference import Region, RegionJob, RegionResult
from pipeline.inference.region import Quicklook, RegionRasters
from pipeline.model.predictor import Precision, PrecisionCheck
from pipeline.results import StageRecords

PLAN = "regions"
"""Name of the record of the plan."""
COUNTS = ("tiles_run", "tiles_skipped", "valid_pixels")
"""Counters of a region."""
ATTEMPT = re.compile("[0-9a-f]{8}")
"""An attempt, as `infer_region` names it."""


@dataclass(frozen=True, kw_only=True)
class RegionPlan:
    """The decisions of a scene's first run; a run that resumes it keeps them."""

    check: PrecisionCheck
    """The precision, and why it was chosen."""
    threshold: float | None
    """Threshold of the masks of the regions; None is the card's."""
    regions: tuple[Region, ...]
    """The regions of the scene."""


class RegionRecords:
    """The records of a scene's regions."""

    def __init__(self, stages: StageRecords, job: RegionJob) -> None:
        """Records under the key of a job."""
        self._stages, self._job = stages, job

    def plan(self) -> RegionPlan | None:
        """The plan of an earlier run; None without a valid one, whose regions lie in the scene and fill it."""
        recorded = self._stages.find(PLAN, self._job.key)
        plan = None if recorded is None else _plan_of(recorded)
        height, width = self._job.scene.grid.shape
        if plan is None or not all(_lies_in(region.core, height, width) for region in plan.regions):
            return None
        return plan if sum(region.pixels for region in plan.regions) == height * width else None

    def begin(self, plan: RegionPlan) -> None:
        """Record a plan before its first region runs; work of another plan is discarded.

        Raises:
            TransientError: the disk refuses.
        """
        self._stages.discard()
        self._stages.remove_unrecorded()
        facts = {
            "proof": asdict(plan.check),
            "threshold": plan.threshold,
            "cores": [_bounds(region.core) for region in plan.regions],
        }
        self._stages.record(PLAN, self._job.key, facts)

    def done(self, plan: RegionPlan) -> list[RegionResult]:
        """Results of the completed regions of a plan, whose rasters are verified by digest."""
        found = ((region, self._stages.find(_stage(region), self._job.key)) for region in plan.regions)
        results = (self._result_of(region, facts) for region, facts in found if facts is not None)
        return [result for result in results if result is not None]

    def add(self, result: RegionResult) -> None:
        """Record a region whose rasters are complete.

        Raises:
            TransientError: the disk refuses.
        """
        if self._job.key is None:
            return
        files = [file for raster in result.rasters for file in self._files(result.region, raster)]
        quicklook = self._quicklook(result.region)
        np.save(quicklook, result.quicklook.pixels)
        self._stages.record(_stage(result.region), self._job.key, _facts_of(result), [*files, quicklook])

    def _files(self, region: Region, raster: RegionRasters) -> list[Path]:
        """Every level of both rasters."""
        return sorted(self._job.folder.glob(f"*-{region.index:05d}-{raster.attempt}.*"))

    def _quicklook(self, region: Region) -> Path:
        return self._job.folder / f"glance-{region.index:05d}.npy"

    def _result_of(self, region: Region, facts: Mapping[str, Any]) -> RegionResult | None:
        """The result in a record; None if it is invalid."""
        try:
            top, left = map(int, facts["glance"])
            rasters = tuple(RegionRasters(core=Window(*core), attempt=attempt) for core, attempt in facts["rasters"])
            counts = {name: int(facts["counts"][name]) for name in COUNTS}
            pixels = np.load(self._quicklook(region), allow_pickle=False)
        except (KeyError, TypeError, ValueError, OverflowError, OSError, MemoryError):
            return None
        # Attempts are parts of file names, which must lie in the folder of the job.
        height, width = self._job.scene.grid.shape
        if not all(ATTEMPT.fullmatch(each.attempt) and _lies_in(each.core, height, width) for each in rasters):
            return None
        is_inside = pixels.ndim == 3 and 0 <= top <= height - pixels.shape[1] and 0 <= left <= width - pixels.shape[2]
        if not is_inside or sum(int(each.core.width * each.core.height) for each in rasters) != region.pixels:
            return None
        return RegionResult(
            region=region, rasters=rasters, quicklook=Quicklook(top=top, left=left, pixels=pixels), **counts
        )


def _facts_of(result: RegionResult) -> dict[str, object]:
    return {
        "rasters": [(_bounds(raster.core), raster.attempt) for raster in result.rasters],
        "glance": (result.quicklook.top, result.quicklook.left),
        "counts": {name: getattr(result, name) for name in COUNTS},
    }


def _plan_of(facts: Mapping[str, Any]) -> RegionPlan | None:
    """The plan in a record; None if it is invalid."""
    try:
        threshold = facts["threshold"]
        return RegionPlan(
            check=precision_check(facts["proof"]),
            threshold=None if threshold is None else float(threshold),
            regions=tuple(Region(index=index, core=Window(*core)) for index, core in enumerate(facts["cores"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def precision_check(facts: Mapping[str, Any]) -> PrecisionCheck:
    """The check in a record; raises KeyError, TypeError or ValueError if it is invalid."""
    check = PrecisionCheck(precision=str(facts["precision"]), change=float(facts["change"]), note=str(facts["note"]))
    if check.precision not in get_args(Precision):
        raise ValueError(check.precision)
    return check


def _lies_in(window: Window, height: int, width: int) -> bool:
    """Whether a window of whole pixels lies in a scene."""
    left, top, right, bottom = (
        window.col_off,
        window.row_off,
        window.col_off + window.width,
        window.row_off + window.height,
    )
    whole = all(type(edge) is int for edge in (left, top, right, bottom))
    return whole and 0 <= left < right <= width and 0 <= top < bottom <= height


def count_done_regions(stages: StageRecords, key: str) -> tuple[int, int]:
    """Number of completed and of planned regions of a scene; 0 and 0 without a plan."""
    recorded = stages.find(PLAN, key)
    plan = None if recorded is None else _plan_of(recorded)
    regions = () if plan is None else plan.regions
    return sum(stages.find(_stage(region), key) is not None for region in regions), len(regions)


def _stage(region: Region) -> str:
    return f"region-{region.index:05d}"


def _bounds(window: Window) -> list[int]:
    return [int(window.col_off), int(window.row_off), int(window.width), int(window.height)]
