"""Reports and preview images of scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.results.preview import write_preview
from pipeline.results.report import (
    OutputFiles,
    SceneInputs,
    SceneReport,
    SceneStatistics,
    Stopwatch,
    write_report,
)

DONE = SceneReport(
    scene="town",
    location="/data/town.tif",
    status="done",
    folder="/out/town",
    inputs=SceneInputs(content_key="abc", settings={"tiling": {"tile_size": 32}}),
    outputs=OutputFiles(names={"mask": "mask.tif"}),
    statistics=SceneStatistics(pixels=100, valid_pixels=90, polygons=3, area_m2={"roof": 12.5}, seconds={"infer": 1.5}),
)
RED = {1: (255, 0, 0, 255)}


def test_a_report_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    write_report(tmp_path, DONE)
    assert SceneReport.from_json(json.loads((tmp_path / "report.json").read_text())) == DONE


KEYS = """
area area_m2 area_share content_key date date_of digests files folder location model mosaic_key outputs passes pixels
polygons precision precision_change precision_note reason regions_split reused scene seconds settings sizes source
status tiles_run tiles_skipped valid_pixels version
"""


def test_report_json_has_every_key_on_one_level_in_alphabetical_order(tmp_path: Path) -> None:
    write_report(tmp_path, DONE)
    record = json.loads((tmp_path / "report.json").read_text())
    assert [*record] == KEYS.split()
    parts = {"outputs": {"mask": "mask.tif"}, "content_key": "abc", "passes": 1, "pixels": 100, "area_share": 1.0}
    assert record.items() >= parts.items()
    defaults = SceneReport(scene="town", location="/data/town.tif", status="done").to_json()
    assert {key: defaults[key] for key in ("files", "sizes", "reused", "seconds", "source", "date_of")} == {
        "files": [],
        "sizes": {},
        "reused": [],
        "seconds": {},
        "source": None,
        "date_of": "processing",
    }


@pytest.mark.parametrize("content", ["[]", "[1]", "3", "null", '"town"', "{}", '{"scene": "town"}'])
def test_json_that_is_no_report_is_refused(content: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        SceneReport.from_json(json.loads(content))


def test_unknown_keys_are_refused_or_ignored() -> None:
    record = {**DONE.to_json(), "objects": {}}
    with pytest.raises(TypeError, match="objects"):
        SceneReport.from_json(record)
    assert SceneReport.from_json(record, ignore_unknown=True) == DONE


def test_a_skipped_report_has_the_current_paths() -> None:
    files = ["/moved/red.tif", "/moved/nir.tif"]
    moved = replace(
        DONE,
        location=files[0],
        folder="/moved/out/town",
        inputs=replace(DONE.inputs, files=files),
        statistics=SceneStatistics(polygons=0),
    )
    found = DONE.as_skipped(moved)
    assert (found.status, found.location, found.folder) == ("skipped", "/moved/red.tif", "/moved/out/town")
    assert found.inputs.files == files
    kept = {"status", "location", "files", "folder"}
    assert {k: v for k, v in found.to_json().items() if k not in kept} == {
        k: v for k, v in DONE.to_json().items() if k not in kept
    }


def test_a_stage_is_timed_even_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.5, 20.0, 20.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = Stopwatch()
    with timer.stage("infer"):
        pass
    with pytest.raises(ZeroDivisionError), timer.stage("polygons"):
        raise ZeroDivisionError
    assert timer.seconds == {"infer": 1.5, "polygons": 0.25}


def draw(path: Path, pixels: NDArray[np.generic], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    write_preview(path, pixels, mask, {0: (1, 2, 3, 0), **RED, 255: (4, 5, 6, 0)})
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def test_the_preview_outlines_classes_and_leaves_their_inside(tmp_path: Path) -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 1
    picture = draw(tmp_path / "p.png", np.full((3, 9, 9), 100, np.uint8), mask)
    red = (picture == (255, 0, 0)).all(axis=2)
    outline = np.zeros((9, 9), bool)
    outline[2:7, 2:7] = True
    outline[3:6, 3:6] = False
    assert (red == outline).all()


def test_nodata_is_white_and_does_not_change_the_contrast(tmp_path: Path) -> None:
    pixels = np.arange(100, 200, dtype=np.uint16).reshape(1, 10, 10)
    pixels[0, 0] = 65_000
    mask = np.zeros((10, 10), np.uint8)
    mask[0] = 255
    picture = draw(tmp_path / "p.png", pixels, mask)
    assert (picture[0] == 255).all()
    assert picture[1, 0, 0] == 0
    assert picture[9, 9, 0] == 255
    assert 100 < picture[5, 5, 0] < 150


@pytest.mark.parametrize("bands", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 6)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_every_size_and_type_makes_a_picture(tmp_path: Path, bands: int, shape: tuple[int, int], dtype: str) -> None:
    mask = np.ones(shape, np.uint8)
    assert draw(tmp_path / "p.png", np.zeros((bands, *shape), dtype), mask).shape == (*shape, 3)


def test_nan_pixels_and_scenes_without_valid_pixels_make_pictures_too(tmp_path: Path) -> None:
    pixels = np.full((3, 4, 4), np.nan, np.float32)
    assert (draw(tmp_path / "a.png", pixels, np.full((4, 4), 255, np.uint8)) == 255).all()
    pixels[:, 1:] = np.arange(12).reshape(3, 4)
    assert draw(tmp_path / "b.png", pixels, np.zeros((4, 4), np.uint8)).max() == 255


def test_a_preview_is_stretched_by_valid_pixels_even_with_the_largest_floats(tmp_path: Path) -> None:
    pixels = np.tile(np.linspace(10, 20, 50, dtype=np.float32), (1, 40, 1))
    pixels[0, :3] = np.array([np.finfo(np.float32).min, np.nan, np.inf])[:, None]
    mask = np.zeros((40, 50), np.uint8)
    mask[0] = 255
    write_preview(tmp_path / "p.png", pixels, mask, RED)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert (picture[0] == 255).all()
    assert picture[3, 0].max() == 0
    assert picture[3, -1].min() == 255
