"""Records of regions: a run resumes exactly what was recorded, or runs it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rasterio.windows import Window

from pipeline.inference import Region, RegionResult
from pipeline.inference.region import Quicklook, RegionRasters
from pipeline.model.predictor import PrecisionCheck
from pipeline.results import StageRecords
from pipeline.stages.region_records import RegionPlan, RegionRecords, count_done_regions
from pipeline.storage import sha256_of_json

HEIGHT, WIDTH = 40, 60
REGIONS = tuple(Region(index=k, core=Window(0, 10 * k, WIDTH, 10)) for k in range(4))
PLAN = RegionPlan(
    check=PrecisionCheck(precision="bfloat16", change=0.001, note="proven"), threshold=0.25, regions=REGIONS
)


@pytest.fixture
def records(tmp_path: Path) -> RegionRecords:
    folder = tmp_path / "regions"
    folder.mkdir()
    job = SimpleNamespace(key="k", folder=folder, scene=SimpleNamespace(grid=SimpleNamespace(shape=(HEIGHT, WIDTH))))
    return RegionRecords(StageRecords(tmp_path), cast("Any", job))


def write(folder: Path, region: Region) -> RegionResult:
    """A region that ran in two parts, with its rasters."""
    rasters = []
    for part, attempt in enumerate(("1a2b3c4d", "5e6f7a8b")):
        core = Window(30 * part, region.core.row_off, 30, region.core.height)
        rasters.append(RegionRasters(core=core, attempt=attempt))
        for kind in ("probability", "mask"):
            (folder / f"{kind}-{region.index:05d}-{attempt}.0.tif").write_text(f"{kind} {attempt}")
    pixels = np.full((1, 5, 30), region.index, np.uint8)
    quicklook = Quicklook(top=5 * region.index, left=0, pixels=pixels)
    return RegionResult(
        region=region, rasters=tuple(rasters), quicklook=quicklook, tiles_run=3, tiles_skipped=1, valid_pixels=500
    )


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the facts of a record, with a digest that is right."""
    content = json.loads(path.read_text())
    del content["sha256"]
    edit(content["facts"])
    path.write_text(json.dumps({"sha256": sha256_of_json(content), **content}))


def test_a_plan_and_its_finished_regions_are_what_was_recorded(records: RegionRecords, tmp_path: Path) -> None:
    records.begin(PLAN)
    assert records.plan() == PLAN
    assert records.done(PLAN) == []
    expected = [write(tmp_path / "regions", region) for region in REGIONS[1:3]]
    for result in expected:
        records.add(result)
    found = records.done(PLAN)
    assert [(each.region, each.rasters, each.tiles_run, each.tiles_skipped, each.valid_pixels) for each in found] == [
        (each.region, each.rasters, 3, 1, 500) for each in expected
    ]
    for each, wanted in zip(found, expected, strict=True):
        assert (each.quicklook.top, each.quicklook.left) == (wanted.quicklook.top, wanted.quicklook.left)
        np.testing.assert_array_equal(each.quicklook.pixels, wanted.quicklook.pixels)
    assert count_done_regions(StageRecords(tmp_path), "k") == (2, 4)
    assert count_done_regions(StageRecords(tmp_path), "other") == (0, 0)


@pytest.mark.parametrize(
    "edit",
    [
        {"cores": [[0, 0, WIDTH, HEIGHT - 1]]},
        {"cores": [[0, 0, WIDTH, HEIGHT], [0, 0, 1, 1]]},
        {"cores": [[0, 0, HEIGHT, WIDTH]]},
        {"cores": [[-1, 0, WIDTH, HEIGHT]]},
        {"cores": [[0, 0, float(WIDTH), float(HEIGHT)]]},
        {"cores": [[0, 0, WIDTH, 10], [0, 10, WIDTH, 0], [0, 10, WIDTH, 30]]},
        {"proof": {"precision": "float1", "change": 0, "note": ""}},
        {"threshold": "x"},
    ],
    ids=str,
)
def test_a_plan_whose_regions_do_not_fill_the_scene_is_none(
    records: RegionRecords, tmp_path: Path, edit: dict[str, Any]
) -> None:
    records.begin(PLAN)
    change(tmp_path / "stages" / "regions.json", lambda facts: facts.update(edit))
    assert records.plan() is None


@pytest.mark.parametrize(
    "edit",
    [
        {"rasters": [[[0, 10, 30, 10], "1a2b3c4d"], [[30, 10, 29, 10], "5e6f7a8b"]]},
        {"rasters": [[[0, 10, 30, 10], "1a2b3c4d"], [[30, 10, 30, 10], "../../../secret"]]},
        {"rasters": [[[0, 10, 30, 10], "1a2b3c4d"], [[31, 10, 30, 10], "5e6f7a8b"]]},
        {"rasters": [[[0, 10, 30, 10], "1a2b3c4d"]]},
        {"glance": [HEIGHT - 4, 0]},
        {"glance": [0, WIDTH - 29]},
        {"glance": [-1, 0]},
        {"counts": {"tiles_run": 3}},
    ],
    ids=str,
)
def test_a_region_whose_record_cannot_be_true_is_not_done(
    records: RegionRecords, tmp_path: Path, edit: dict[str, Any]
) -> None:
    records.begin(PLAN)
    records.add(write(tmp_path / "regions", REGIONS[1]))
    assert len(records.done(PLAN)) == 1
    change(tmp_path / "stages" / "region-00001.json", lambda facts: facts.update(edit))
    assert records.done(PLAN) == []


@pytest.mark.parametrize("name", ["mask-00001-1a2b3c4d.0.tif", "probability-00001-5e6f7a8b.0.tif", "glance-00001.npy"])
@pytest.mark.parametrize("damage", ["absent", "another byte"])
def test_a_region_with_a_damaged_raster_is_not_done(
    records: RegionRecords, tmp_path: Path, name: str, damage: str
) -> None:
    records.begin(PLAN)
    records.add(write(tmp_path / "regions", REGIONS[1]))
    path = tmp_path / "regions" / name
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert records.done(PLAN) == []


def test_work_of_another_plan_is_discarded(records: RegionRecords, tmp_path: Path) -> None:
    records.begin(PLAN)
    records.add(write(tmp_path / "regions", REGIONS[1]))
    records.begin(PLAN)
    assert records.done(PLAN) == []
