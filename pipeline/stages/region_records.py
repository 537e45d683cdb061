"""Records of completed regions: the plan of a scene's regions, and one record per region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from pipeline.inference import Region, RegionJob, RegionResult
from pipeline.inference.region import Quicklook, RegionRasters
from pipeline.model.predictor import PrecisionCheck
from pipeline.results import StageRecords

PLAN = "regions"
"""Name of the record of the plan."""


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
        """The plan of an earlier run, or None."""
        recorded = self._stages.find(PLAN, self._job.key)
        return None if recorded is None else _plan_of(recorded)

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
        return [self._result_of(region, facts) for region, facts in found if facts is not None]

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

    def _result_of(self, region: Region, facts: Mapping[str, Any]) -> RegionResult:
        top, left = facts["glance"]
        pixels = np.load(self._quicklook(region), allow_pickle=False)
        return RegionResult(
            region=region,
            rasters=tuple(RegionRasters(core=Window(*core), attempt=attempt) for core, attempt in facts["rasters"]),
            quicklook=Quicklook(top=top, left=left, pixels=pixels),
            **facts["counts"],
        )


def _facts_of(result: RegionResult) -> dict[str, object]:
    return {
        "rasters": [(_bounds(raster.core), raster.attempt) for raster in result.rasters],
        "glance": (result.quicklook.top, result.quicklook.left),
        "counts": {name: getattr(result, name) for name in ("tiles_run", "tiles_skipped", "valid_pixels")},
    }


def _plan_of(facts: Mapping[str, Any]) -> RegionPlan:
    cores = enumerate(facts["cores"])
    return RegionPlan(
        check=PrecisionCheck(**facts["proof"]),
        threshold=facts["threshold"],
        regions=tuple(Region(index=index, core=Window(*core)) for index, core in cores),
    )


def count_done_regions(stages: StageRecords, key: str) -> tuple[int, int]:
    """Number of completed and of planned regions of a scene; 0 and 0 without a plan."""
    recorded = stages.find(PLAN, key)
    regions = () if recorded is None else _plan_of(recorded).regions
    return sum(stages.find(_stage(region), key) is not None for region in regions), len(regions)


def _stage(region: Region) -> str:
    return f"region-{region.index:05d}"


def _bounds(window: Window) -> list[int]:
    return [int(window.col_off), int(window.row_off), int(window.width), int(window.height)]
