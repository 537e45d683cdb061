"""Rules of a merge on small cases: which scenes come first, which pairs meet, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from affine import Affine
from conftest import MakeScene
from rasterio.crs import CRS
from test_merge_scenes import merged, roof, segmented, two, write_result

from pipeline.grid.raster_grid import RasterGrid
from pipeline.merge import joining
from pipeline.merge.record import MergeReport, merge_key
from pipeline.merge.rows import MergedRows
from pipeline.merge.run import compare_scenes
from pipeline.merge.scenes import MergedScene, by_priority, finished_scenes, overlapping_pairs
from pipeline.merge.selection import select_polygons
from pipeline.merge.spec import MergeSpec
from pipeline.results.results import open_results

NONE = np.empty((0, 2), np.int64)


def scene(name: str, *, date: str = "2024-01-01T00:00:00Z", pixel: float = 1, lon: float | None = None) -> MergedScene:
    place = Affine(pixel, 0, 500_000, 0, -pixel, 5_000_000) if lon is None else Affine(0.1, 0, lon, 0, -0.1, 50)
    grid = RasterGrid(crs=CRS.from_epsg(32633 if lon is None else 4326), transform=place, height=10, width=10)
    return MergedScene(
        id=name,
        polygons=Path(),
        mask=Path(),
        grid=grid,
        is_full=True,
        classes={},
        date=date,
        identity=(name,),
    )


def test_scenes_are_ordered_by_date_or_pixel_size_and_equals_by_the_other_and_their_names() -> None:
    old, new = "2020-01-01T00:00:00Z", "2024-01-01T00:00:00Z"
    scenes = [
        scene("d", date=old, pixel=1),
        scene("c", date=new, pixel=2),
        scene("b", date=new, pixel=1),
        scene("a", date=new, pixel=1),
        scene("e", date=old, pixel=2),
    ]
    orders = {name: "".join(each.id for each in by_priority(scenes, name)) for name in ("newest", "oldest", "finest")}  # type: ignore[arg-type]
    assert orders == {"newest": "abcde", "oldest": "deabc", "finest": "abdce"}


def test_scenes_on_both_sides_of_the_antimeridian_meet() -> None:
    scenes = [scene("a", lon=179.5), scene("b", lon=-179.9), scene("c", lon=10)]
    assert overlapping_pairs(scenes) == [(0, 1)]


def test_a_polygon_without_a_counterpart_replaces_none_and_joins_none() -> None:
    found = select_polygons(np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]]), np.array([1, 5]))
    assert found.dropped.tolist() == [4]
    assert found.unmatched.tolist() == [1, 5]
    assert [group.tolist() for group in found.merged] == [[7, 8]]


def test_a_polygon_that_was_dropped_joins_none() -> None:
    found = select_polygons(np.array([[1, 2]]), np.array([[2, 3], [3, 4]]), np.empty(0, np.int64))
    assert found.dropped.tolist() == [2]
    assert [group.tolist() for group in found.merged] == [[3, 4]]


def test_counts_and_areas_of_a_merge_are_those_of_its_rows(tmp_path: Path) -> None:
    """Two scenes that saw the same two roofs, one of which the older alone saw whole."""
    mask = np.zeros((90, 90), np.uint8)
    mask[40:44, 40:44] = mask[45:47, 60:63] = 1
    mask[70:72, 3:5] = 2
    newer = write_result(tmp_path, mask, name="newer", date="2024-06-02T00:00:00Z")
    older = write_result(tmp_path, mask, name="older")
    report = MergeReport(key="", file="", crs="", settings={}, scenes=())
    rows = MergedRows([newer, older], compare_scenes([newer, older], MergeSpec()), newer.grid.crs)
    tables = list(rows.batches())
    counted = rows.with_counts(report)
    classes = [name for table in tables for name in table["class"].to_pylist()]
    areas = [area for table in tables for area in table["area_m2"].to_pylist()]
    assert (counted.read, counted.polygons, counted.left_out, counted.lone) == (6, 3, 3, 0)
    for name in ("roof", "road"):
        assert np.isclose(counted.area_m2[name], sum(a for a, c in zip(areas, classes, strict=True) if c == name))
    later = replace(newer, id="z", classes=newer.classes)
    two = MergedRows([newer, later], select_nothing(), newer.grid.crs)
    list(two.batches())
    assert np.isclose(two.with_counts(report).area_m2["roof"], 2 * counted.area_m2["roof"])


def select_nothing():  # type: ignore[no-untyped-def]
    return select_polygons(NONE, NONE, np.empty(0, np.int64))


def test_a_joined_polygon_has_the_greatest_probability_and_counts_shared_pixels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = two(tmp_path, roof((5, 4, 6, 16)), roof((5, 0, 6, 12)), col=10)
    read = joining.read_rows

    def with_other_maxima(scene: MergedScene, fids: list[int]):  # type: ignore[no-untyped-def]
        for table, geometry in read(scene, fids):
            at = table.column_names.index("max_probability")
            value = pa.array([0.75 if scene is scenes[0] else 0.5] * len(table), table.schema.field(at).type)
            yield table.set_column(at, table.schema.field(at), value), geometry

    monkeypatch.setattr(joining, "read_rows", with_other_maxima)
    (joined,) = merged(scenes).itertuples()
    assert joined.max_probability == 0.75
    assert joined.pixel_count == 6 * 18  # 96 and 72 pixels, 60 of them the same


def test_a_scene_is_full_where_no_pixel_of_it_is_missing(tmp_path: Path, make_scene: MakeScene) -> None:
    whole = np.full((40, 40), 251, np.uint8)
    holed = whole.copy()
    holed[:10, :10] = 0
    segmented(tmp_path / "out", make_scene, whole, name="whole", row=0, col=0)
    segmented(tmp_path / "out", make_scene, holed, name="holed", row=0, col=0)
    found = finished_scenes(open_results(tmp_path / "out"))
    assert {scene.id: scene.is_full for scene in found} == {"whole": True, "holed": False}


def test_a_merge_of_scenes_with_the_same_names_and_other_results_is_another() -> None:
    before, after = scene("a"), replace(scene("a"), identity=("a", "other"))
    assert merge_key([before], MergeSpec()) == merge_key([scene("a")], MergeSpec())
    assert merge_key([before], MergeSpec()) != merge_key([after], MergeSpec())
    both = [scene("a"), scene("b")]
    assert merge_key(both, MergeSpec()) == merge_key(both[::-1], MergeSpec())
