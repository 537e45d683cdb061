"""Merging polygons of overlapping scenes: the rules as properties, and the files."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import MakeScene
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from support.fake_mosaic import NAMES, NODATA, classes_source
from support.object_stores import Store

from pipeline.config import SegmentSpec
from pipeline.errors import SceneError, SettingsError, TransientError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.merge.extent import PreparedExtent
from pipeline.merge.rows import MergedRows
from pipeline.merge.run import compare_scenes, merge_scenes
from pipeline.merge.scenes import MergedScene, by_priority
from pipeline.merge.selection import select_polygons
from pipeline.merge.spec import MergeSpec
from pipeline.model.card import ModelCard
from pipeline.polygons.export import write_polygons
from pipeline.polygons.shaping import PolygonSpec, shape_polygons
from pipeline.polygons.stream import vectorize
from pipeline.polygons.writer import write_layer
from pipeline.results.results import open_results
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene
from pipeline.storage.files import try_lock
from pipeline.training.synthetic import build_town

CLASSES = dict(enumerate(NAMES[1:], start=1))
UTM33 = "EPSG:32633"
ORIGIN = Affine(0.3, 0, 500_000.1, 0, -0.3, 5_000_000.7)


def write_result(
    folder: Path,
    mask: ArrayLike,
    *,
    name: str,
    row: int = 0,
    col: int = 0,
    date: str = "2024-06-01T00:00:00Z",
    crs: str = UTM33,
    origin: Affine = ORIGIN,
    shaped: PolygonSpec | None = None,
    classes: Sequence[str] = NAMES[1:],
) -> MergedScene:
    """Polygons and mask of a scene whose first pixel is `(row, col)` of a lattice; values 0..4, 255 = nodata."""
    values = np.asarray(mask, np.uint8)
    source = classes_source(values, crs=crs, transform=origin @ Affine.translation(col, row))
    grid, spec = source.grid, shaped or PolygonSpec()
    place = folder / name
    place.mkdir(parents=True)
    polygons = shape_polygons(vectorize(source, spec), grid, spec)
    write_polygons(place / "polygons.gpkg", polygons, crs=grid.crs, scene_id=name, model_id="m", classes=CLASSES)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NODATA, "crs": crs}
    with rasterio.open(
        place / "mask.tif", "w", **profile, transform=grid.transform, height=grid.height, width=grid.width
    ) as dataset:
        dataset.write(values, 1)
    return MergedScene(
        id=name,
        polygons=place / "polygons.gpkg",
        mask=place / "mask.tif",
        grid=grid,
        is_full=bool((values != NODATA).all()),
        classes={value: text for value, text in CLASSES.items() if text in classes},
        date=date,
        identity=(name,),
    )


def merged(
    scenes: Sequence[MergedScene], path: Path | None = None, crs: str | None = None, **rule: object
) -> geopandas.GeoDataFrame:
    """The merged polygons, read back."""
    spec = MergeSpec(**rule)  # type: ignore[arg-type]
    ordered = by_priority(scenes, spec.priority)
    target = CRS.from_user_input(crs) if crs else scenes[0].grid.crs
    path = path or scenes[0].polygons.parents[1] / "polygons.parquet"
    rows = MergedRows(ordered, compare_scenes(ordered, spec), target)
    write_layer(path, rows.batches(), rows.schema, crs=target, classes=rows.legend)
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path).rename_geometry("geometry")
    return geopandas.read_file(path, layer="polygons")


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One scene over a ground whose truth is known."""

    rows: slice
    cols: slice
    hidden: NDArray[np.bool_]
    date: str


@st.composite
def observed_masks(draw: st.DrawFn) -> tuple[NDArray[np.uint8], list[Look]]:
    """A true mask of blobs, and scenes that saw windows of it, each with nodata of its own."""
    height, width = draw(st.integers(4, 24)), draw(st.integers(4, 24))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, draw(st.integers(1, 3)) + 1, (height, width)).astype(np.uint8)
    grain = draw(st.integers(1, 4))
    truth = np.repeat(np.repeat(coarse, grain, axis=0), grain, axis=1)[:height, :width]
    looks = []
    for _ in range(draw(st.integers(1, 4))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        rows = slice(top, draw(st.integers(top + 1, height)))
        cols = slice(left, draw(st.integers(left + 1, width)))
        hidden = np.zeros((rows.stop - rows.start, cols.stop - cols.start), bool)
        for _ in range(draw(st.integers(0, 2))):
            y, x = draw(st.integers(0, hidden.shape[0])), draw(st.integers(0, hidden.shape[1]))
            hidden[y : y + draw(st.integers(0, 6)), x : x + draw(st.integers(0, 6))] = True
        if generator.random() < 0.3:
            hidden |= generator.random(hidden.shape) < 0.1
        looks.append(Look(rows=rows, cols=cols, hidden=hidden, date=f"202{draw(st.integers(0, 2))}-01-01T00:00:00Z"))
    return truth, looks


def as_seen(folder: Path, truth: NDArray[np.uint8], looks: Sequence[Look]) -> tuple[list[MergedScene], MergedScene]:
    """The scenes, and one that saw all that any of them saw."""
    whole = np.full(truth.shape, NODATA, np.uint8)
    scenes = []
    for number, look in enumerate(looks):
        seen = np.where(look.hidden, NODATA, truth[look.rows, look.cols])
        part = whole[look.rows, look.cols]
        part[seen != NODATA] = seen[seen != NODATA]
        scenes.append(
            write_result(folder, seen, name=f"s{number}", row=look.rows.start, col=look.cols.start, date=look.date)
        )
    return scenes, write_result(folder, whole, name="whole")


def shapes_of(table: geopandas.GeoDataFrame) -> set[tuple[str, int, bytes]]:
    """What is there, on the lattice: class, pixels, outline."""
    geometry = shapely.transform(table.geometry.to_numpy(), lambda xy: np.round(np.column_stack(~ORIGIN @ xy.T), 4))
    geometry = shapely.normalize(shapely.simplify(geometry, 0))
    return set(zip(table["class"], table.pixel_count, shapely.to_wkb(geometry), strict=True))


RULES = {"priority": st.sampled_from(["newest", "oldest", "finest"]), "margin_px": st.sampled_from([0.0, 2.0])}


@given(observed=observed_masks(), rule=st.fixed_dictionaries(RULES))
@settings(max_examples=25)
def test_scenes_that_agree_give_the_polygons_of_one_scene_that_covers_all(
    observed: tuple[NDArray[np.uint8], list[Look]], rule: dict[str, object]
):
    check_agreeing(*observed, **rule)


@pytest.mark.slow
@given(observed=observed_masks(), rule=st.fixed_dictionaries(RULES))
@settings(max_examples=100)
def test_many_scenes_that_agree_give_the_polygons_of_one_scene_that_covers_all(
    observed: tuple[NDArray[np.uint8], list[Look]], rule: dict[str, object]
):
    check_agreeing(*observed, **rule)


def check_agreeing(truth: NDArray[np.uint8], looks: Sequence[Look], **rule: object) -> None:
    with a_folder() as folder:
        scenes, whole = as_seen(folder, truth, looks)
        found = merged(scenes, **rule)
        expected = geopandas.read_file(whole.polygons, layer="polygons")
        assert shapes_of(found) == shapes_of(expected)
        assert len(found) == len(expected)
        assert found.area_m2.sum() == pytest.approx(expected.area_m2.sum(), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_scenes_on_lattices_of_their_own_make_valid_polygons_of_true_size(seed: int, tmp_path: Path):
    """Turned, mirrored, of other pixel sizes and CRSs, simplified: nothing is exact, and all of it is sound."""
    generator = np.random.default_rng(seed)
    scenes = []
    for number in range(4):
        mask = np.kron(generator.integers(0, 3, (8, 9)), np.ones((4, 4))).astype(np.uint8)
        mask[generator.random(mask.shape) < 0.05] = generator.choice([0, NODATA])
        crs = str(generator.choice([UTM33, UTM33, "EPSG:32632", "EPSG:4326", "EPSG:3857"]))
        corner = shapely.Point(500_000 + generator.uniform(0, 10), 5_000_000 - generator.uniform(0, 10))
        place = geopandas.GeoSeries([corner], crs=UTM33).to_crs(crs).iloc[0]
        size = generator.choice([0.3, 0.5]) / {"EPSG:4326": 111_000, "EPSG:3857": 0.7}.get(crs, 1)
        turned = Affine.rotation(generator.choice([0.0, 17.3])) @ Affine.scale(size, size * generator.choice([1, -1]))
        shaped = PolygonSpec(connectivity=generator.choice([4, 8]), simplify_m=generator.choice([0.0, 0.4]))
        origin = Affine.translation(place.x, place.y) @ turned
        scenes.append(write_result(tmp_path, mask, name=f"s{number}", crs=crs, origin=origin, shaped=shaped))
    for crs in (UTM33, "EPSG:4326"):
        found = merged(scenes, crs=crs, margin_px=2.0, unmatched="keep")
        assert found.is_valid.all()
        assert {*found.geom_type} == {"MultiPolygon"}
        assert found.to_crs(UTM33).area.to_numpy() == pytest.approx(found.area_m2.to_numpy(), rel=2e-3)


@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=4), order=st.randoms(use_true_random=False))
@settings(max_examples=6)
def test_conflicting_scenes_give_no_duplicates_in_any_order(seeds: list[int], order: random.Random):
    masks = [np.random.default_rng(seed).integers(0, 3, (8, 9)).repeat(2, 0).repeat(2, 1) for seed in seeds]
    with a_folder() as folder:
        scenes = [
            write_result(folder, mask, name=f"s{k}", date=f"202{k % 2}-01-01T00:00:00Z") for k, mask in enumerate(masks)
        ]
        files = [folder / f"{name}.gpkg" for name in ("first", "second")]
        found = merged(scenes, files[0], margin_px=0)
        merged(order.sample(scenes, len(scenes)), files[1], margin_px=0)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert (found.pieces == 1).all()
        newest = max(scenes, key=lambda scene: scene.date)
        stays = geopandas.read_file(by_priority(scenes, "newest")[0].polygons, layer="polygons")
        assert {*found.scene} == {newest.id}
        assert shapes_of(found) == shapes_of(stays)
        everything = merged(scenes, margin_px=0, unmatched="keep")
        assert most_in_common(everything) < 0.5


def most_in_common(table: geopandas.GeoDataFrame) -> float:
    """The greatest share of a polygon that one of its class from another scene covers."""
    tree = table.sindex.query(table.geometry, predicate="intersects").T
    shares = (
        one.geometry.intersection(other.geometry).area / min(one.geometry.area, other.geometry.area)
        for one, other in ((table.iloc[k], table.iloc[m]) for k, m in tree if k < m)
        if one.scene != other.scene and one["class"] == other["class"]
    )
    return max(shares, default=0.0)


# The rule, case by case


def roof(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (20, 20), value: int = 1) -> NDArray[np.uint8]:
    """A mask with boxes of a class, each `(first row, first column, rows, columns)`."""
    mask = np.zeros(shape, np.uint8)
    for row, col, height, width in boxes:
        mask[row : row + height, col : col + width] = value
    return mask


def summary(table: geopandas.GeoDataFrame) -> list[tuple[str, int, int]]:
    """Scene, pixels and pieces of each polygon."""
    return sorted(zip(table.scene, table.pixel_count, table.pieces, strict=True))


OLD, NEW = "2023-01-01T00:00:00Z", "2024-01-01T00:00:00Z"


def two(
    folder: Path, old: NDArray[np.uint8], new: NDArray[np.uint8], *, col: int = 0, **of_new: Any
) -> list[MergedScene]:
    """An older scene, and a newer one that begins some columns to the right."""
    return [
        write_result(folder, old, name="old", date=OLD),
        write_result(folder, new, name="new", date=NEW, col=col, **of_new),
    ]


@pytest.mark.parametrize(
    ("old", "new", "col", "rule", "expected"),
    [
        (roof((5, 5, 6, 6)), roof((5, 6, 6, 6)), 0, {}, [("new", 36, 1)]),  # both saw it whole: the newer
        (roof((5, 5, 6, 6)), roof((5, 6, 6, 6)), 0, {"priority": "oldest"}, [("old", 36, 1)]),
        (roof((5, 5, 6, 6)), roof((5, 9, 6, 6)), 0, {"unmatched": "keep"}, [("new", 36, 1), ("old", 36, 1)]),  # a third
        (roof((5, 5, 6, 6)), roof((5, 8, 6, 6)), 0, {"unmatched": "keep"}, [("new", 36, 1)]),  # half of it in common
        (roof((5, 5, 6, 6)), roof(), 0, {}, []),  # demolished
        (roof((5, 5, 6, 6)), roof(), 0, {"unmatched": "keep"}, [("old", 36, 1)]),
        (roof((5, 5, 6, 6)), roof(), 0, {"priority": "oldest"}, [("old", 36, 1)]),
        (roof((5, 5, 6, 6)), roof(), 0, {"margin_px": 6.0}, [("old", 36, 1)]),  # too near to the new scene's edge
        (roof((5, 5, 6, 6)), roof(), 6, {}, [("old", 36, 1)]),  # the new scene saw a part of the place
        (roof((5, 7, 6, 8)), roof((5, 0, 6, 5)), 10, {}, [("old", 48, 1)]),  # cut by the newer, whole in the older
        (roof((5, 4, 6, 16)), roof((5, 0, 6, 12)), 10, {}, [("new", 108, 2)]),  # cut by both
        (roof((5, 2, 6, 18)), roof((5, 0, 6, 9)), 20, {}, [("new", 162, 2)]),  # the scenes only meet
        (roof((5, 2, 6, 18)), roof((5, 1, 6, 9)), 20, {}, [("new", 54, 1), ("old", 108, 1)]),
        (roof((5, 5, 6, 6)), roof((5, 5, 6, 6), value=2), 0, {}, [("new", 36, 1)]),  # of another class now
        (roof((5, 5, 6, 6)), roof((5, 5, 6, 6), value=2), 0, {"unmatched": "keep"}, [("new", 36, 1), ("old", 36, 1)]),
        (roof((0, 0, 20, 20)), roof((3, 0, 2, 2)), 10, {}, [("old", 400, 1)]),  # the newer saw a corner of it
        (roof((5, 5, 6, 6)), roof((5, 5, 6, 2), (5, 8, 6, 3)), 0, {}, [("new", 12, 1), ("new", 18, 1)]),
        (roof((5, 5, 6, 2), (5, 8, 6, 3)), roof((5, 5, 6, 6)), 0, {}, [("new", 36, 1)]),
    ],
)
def test_the_selection_rule(
    old: NDArray[np.uint8],
    new: NDArray[np.uint8],
    col: int,
    rule: dict[str, object],
    expected: list[tuple[str, int, int]],
    tmp_path: Path,
):
    scenes = two(tmp_path, old, new, col=col)
    assert summary(merged(scenes, **{"margin_px": 1.0, **rule})) == expected


def test_a_model_without_a_class_does_not_contradict_it(tmp_path: Path):
    scenes = two(tmp_path, roof((5, 5, 6, 6)), roof(), classes=["road"])
    assert summary(merged(scenes, margin_px=1.0)) == [("old", 36, 1)]


def test_nodata_of_one_scene_is_covered_by_another(tmp_path: Path):
    clouded = roof((5, 5, 6, 6))
    clouded[8:, :] = NODATA
    found = merged(two(tmp_path, roof((5, 5, 6, 6), (14, 5, 3, 3)), clouded), margin_px=0.0)
    assert summary(found) == [("old", 9, 1), ("old", 36, 1)]


def test_a_scene_farther_from_the_edge_of_its_data_takes_priority(tmp_path: Path):
    scenes = two(tmp_path, roof((8, 12, 3, 3)), roof((8, 1, 3, 4)), col=10)
    assert summary(merged(scenes, margin_px=4.0)) == [("old", 9, 1)]
    assert summary(merged(scenes, margin_px=0.0)) == [("new", 12, 1)]


def test_a_joined_polygon_has_the_means_of_its_pieces_by_pixels(tmp_path: Path):
    scenes = two(tmp_path, roof((5, 4, 6, 16)), roof((5, 0, 6, 12)), col=10)
    pieces = [geopandas.read_file(scene.polygons, layer="polygons").iloc[0] for scene in scenes]
    (joined,) = merged(scenes).itertuples()
    means, counts = [piece.mean_probability for piece in pieces], [piece.pixel_count for piece in pieces]
    assert counts == [96, 72]
    assert joined.mean_probability == pytest.approx(np.average(means, weights=counts))
    assert joined.max_probability == max(piece.max_probability for piece in pieces)
    assert joined.area_m2 == pytest.approx(108 * 0.09, rel=1e-3)
    assert joined.perimeter_m == pytest.approx(2 * (6 + 18) * 0.3, rel=1e-3)
    assert (joined.scene, joined.model, joined.pieces) == ("new", "m", 2)
    assert joined.date.isoformat() == "2024-01-01T00:00:00+00:00"


# Places


def test_scenes_of_two_zones_become_one_file_in_degrees_without_a_tear(tmp_path: Path):
    """Two UTM zones meet at 12 degrees east; both saw the same three roofs."""
    places = [shapely.box(lon, 50.0, lon + 1e-3, 50.0006) for lon in (11.99, 11.9996, 12.009)]
    scenes = []
    for zone, crs in enumerate(("EPSG:32632", "EPSG:32633")):
        projected = geopandas.GeoSeries(places, crs=4326).to_crs(crs)
        left, bottom, right, top = projected.total_bounds
        origin = Affine(2, 0, left - 200, 0, -2, top + 200)
        shape = (int((top - bottom + 400) / 2), int((right - left + 400) / 2))
        mask = rasterize([*projected], shape, transform=origin).astype(np.uint8)
        scenes.append(
            write_result(tmp_path, mask, name=f"zone{zone}", date=f"202{zone}-01-01T00:00:00Z", crs=crs, origin=origin)
        )
    found = merged(scenes, crs="EPSG:4326")
    assert [*found.scene] == ["zone1"] * 3
    assert found.crs == "EPSG:4326"
    for geometry, place in zip(found.sort_values("area_m2").geometry, places, strict=True):
        assert max(geometry.intersection(each).area / geometry.union(each).area for each in places) > 0.9
        assert place.area == pytest.approx(geometry.area, rel=0.1)
    assert found.is_valid.all()


def test_a_polygon_across_the_antimeridian_is_cut_there_in_degrees(tmp_path: Path):
    middle = geopandas.GeoSeries([shapely.Point(180, -17)], crs=4326).to_crs("EPSG:32760").iloc[0]
    origin = Affine(10, 0, middle.x - 100, 0, -10, middle.y + 100)
    scene = write_result(tmp_path, roof((5, 5, 10, 10)), name="fiji", crs="EPSG:32760", origin=origin)
    found = merged([scene], crs="EPSG:4326").iloc[0]
    assert len(found.geometry.geoms) == 2
    assert found.area_m2 == pytest.approx(10_000, rel=2e-3)
    west, east = sorted(found.geometry.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    assert found.geometry.is_valid


# Whole runs


TOWN = ModelCard(bands=("red",), classes=("building",))
SMALL = SegmentSpec(tiling=TilingSpec(tile_size=256, overlap=0), reading=ReadingSpec(threads=1))


@pytest.fixture(scope="module")
def town() -> NDArray[np.uint8]:
    """Buildings of an invented town: 251 on roofs, 1 beside them."""
    mask = build_town(5, 480, 660).mask() * np.uint8(250)
    return mask + 1


def segmented(out: Path, make_scene: MakeScene, pixels: NDArray[np.uint8], *, name: str, row: int, col: int) -> None:
    transform = ORIGIN @ Affine.translation(col, row)
    scene = make_scene(pixels, name=f"{name}.tif", transform=transform, descriptions=["red"], nodata=0)
    segment_scene(scene, out, predictor=lambda tiles: tiles / 251, card=TOWN, spec=SMALL)


def test_a_town_split_into_overlapping_scenes_merges_to_one(
    town: NDArray[np.uint8], make_scene: MakeScene, tmp_path: Path
):
    seen = np.zeros_like(town)
    for row, col in ((0, 0), (0, 352), (240, 0), (240, 300)):
        part = town[row : row + 248, col : col + 360].copy()
        part[-25:, :60] = 0  # no data in a corner that another scene may have seen
        corner = seen[row : row + 248, col : col + 360]
        corner[part > 0] = part[part > 0]
        segmented(tmp_path / "sheets", make_scene, part, name=f"sheet{row}-{col}", row=row, col=col)
    segmented(tmp_path / "seen", make_scene, seen, name="seen", row=0, col=0)
    report = merge_scenes(tmp_path / "sheets", MergeSpec())
    assert report is not None
    found = geopandas.read_file(tmp_path / "sheets" / "polygons.gpkg", layer="polygons")
    expected = geopandas.read_file(tmp_path / "seen" / "seen" / "polygons.gpkg", layer="polygons")
    assert shapes_of(found) == shapes_of(expected)
    assert (report.read, report.polygons) == (
        report.polygons + report.left_out + report.lone + report.joined - report.made,
        len(expected),
    )
    assert report.left_out > 0
    assert report.lone == 0
    assert report.made > 0
    assert sum(report.area_m2.values()) == pytest.approx(expected.area_m2.sum(), rel=1e-6)


@pytest.fixture
def sheets(make_scene: MakeScene, tmp_path: Path) -> Path:
    """A folder of results of two scenes that overlap."""
    pixels = np.where(np.random.default_rng(0).random((40, 60)) < 0.4, np.uint8(251), np.uint8(1))
    for name, col in (("left", 0), ("right", 20)):
        segmented(tmp_path / "out", make_scene, pixels[:, col : col + 40], name=name, row=0, col=col)
    return tmp_path / "out"


def test_a_merge_is_made_again_only_when_something_has_changed(sheets: Path, make_scene: MakeScene):
    first = merge_scenes(sheets, MergeSpec())
    assert first is not None
    assert first.changed
    recorded = json.loads((sheets / "merge.json").read_text())
    assert [*recorded["settings"]] == ["into", "prefer", "same", "margin_px", "lone", "crs"]
    assert "changed" not in recorded
    content = (sheets / "polygons.gpkg").read_bytes()
    again = merge_scenes(sheets, MergeSpec())
    assert again == first
    assert not again.changed
    changed = merge_scenes(sheets, MergeSpec(unmatched="keep"))
    assert changed is not None
    assert changed.changed
    back = merge_scenes(sheets, MergeSpec())
    assert back == first
    assert (sheets / "polygons.gpkg").read_bytes() == content
    (sheets / "polygons.gpkg").unlink()
    restored = merge_scenes(sheets, MergeSpec())
    assert restored is not None
    assert restored.changed
    segmented(sheets, make_scene, np.full((40, 40), 251, np.uint8), name="third", row=0, col=40)
    third = merge_scenes(sheets, MergeSpec())
    assert third is not None
    assert third.changed
    assert sorted(third.scenes) == ["left", "right", "third"]


def test_scenes_in_a_store_are_merged_as_in_a_folder(sheets: Path, store: Store, tmp_path: Path):
    away = f"s3://{store.bucket}/out"
    for name in ("left", "right"):
        with open_results(away, tmp_path / "work").scenes.publishing(name) as work:
            shutil.copytree(sheets / name, work, dirs_exist_ok=True)
    near, far = merge_scenes(sheets, MergeSpec()), merge_scenes(away, MergeSpec(), work_dir=tmp_path)
    assert far is not None
    assert near is not None
    assert (far.scenes, far.file_bytes, far.left_out) == (near.scenes, near.file_bytes, near.left_out)
    assert store.get("out/polygons.gpkg") == (sheets / "polygons.gpkg").read_bytes()
    again = merge_scenes(away, MergeSpec())
    assert again == far
    assert not again.changed
    merge_scenes(away, MergeSpec(output="parquet"), work_dir=tmp_path)
    assert {*store.names("out/")} >= {"polygons.parquet", "merge.json"}
    assert "polygons.gpkg" not in store.names("out/")
    assert [*tmp_path.glob("scenemill-merge-*")] == []


def test_another_kind_of_file_replaces_the_previous_one(sheets: Path):
    merge_scenes(sheets, MergeSpec(output="gpkg"))
    table = geopandas.read_file(sheets / "polygons.gpkg", layer="polygons")
    merge_scenes(sheets, MergeSpec(output="parquet"))
    assert not (sheets / "polygons.gpkg").exists()
    stored = geopandas.read_parquet(sheets / "polygons.parquet")
    assert shapes_of(stored) == shapes_of(table)
    assert {*stored.columns} == {*table.columns, "geom"} - {"geometry"}


def test_incomplete_scenes_are_skipped(sheets: Path):
    (sheets / "left" / "mask.tif").unlink()
    (sheets / "notes").mkdir()
    report = merge_scenes(sheets, MergeSpec())
    assert report is not None
    assert report.scenes == ["right"]
    assert report.polygons == report.read
    for path in [*sheets.iterdir()]:
        if path.is_dir():
            shutil.rmtree(path)
    assert merge_scenes(sheets, MergeSpec()) is None


def test_a_damaged_file_is_named_and_the_previous_result_stays(sheets: Path):
    merge_scenes(sheets, MergeSpec())
    content = (sheets / "polygons.gpkg").read_bytes()
    broken = sheets / "left" / "polygons.gpkg"
    broken.write_bytes(b"no geopackage" + broken.read_bytes()[13:])
    with pytest.raises(SceneError, match=r"left/polygons\.gpkg.*delete the folder"):
        merge_scenes(sheets, MergeSpec(unmatched="keep"))
    assert (sheets / "polygons.gpkg").read_bytes() == content
    assert [path.name for path in sheets.glob(".*partial*")] == []


def test_two_processes_do_not_merge_the_same_folder(sheets: Path):
    with open(sheets / ".merge.lock", "w") as held:
        assert try_lock(held.fileno())
        with pytest.raises(TransientError, match="another process is merging"):
            merge_scenes(sheets, MergeSpec())


def test_invalid_settings_are_refused(sheets: Path):
    for wrong in ({"min_overlap": 0.0}, {"min_overlap": 1.5}, {"margin_px": -1.0}, {"margin_px": float("nan")}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            MergeSpec(**wrong)
    with pytest.raises(SettingsError, match=r"merge\.crs"):
        merge_scenes(sheets, MergeSpec(crs="EPSG:0"))


@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.1, 0.5, 0.9]))
def test_an_extent_decides_each_polygon_like_the_whole_area(seed: int, share: float):
    generator = np.random.default_rng(seed)
    seen = generator.random((12, 14)) < share
    area = shapely.union_all([shapely.box(col, row, col + 1, row + 1) for row, col in np.argwhere(seen)])
    low = generator.integers(0, 12, (30, 2))
    boxes = shapely.box(*low.T, *(low + generator.integers(1, 6, (30, 2))).T)
    polygons = np.array([*boxes, shapely.MultiPolygon([boxes[0], shapely.box(20, 20, 21, 21)])])
    extent = PreparedExtent(area)
    assert (extent.covers(polygons) == shapely.covers(area, polygons)).all()
    assert (extent.intersects(polygons) >= shapely.intersects(area, polygons)).all()
    parts, owner = extent.clip(polygons)
    assert {*shapely.get_type_id(parts)} <= {shapely.GeometryType.POLYGON}
    sizes = np.bincount(owner, shapely.area(parts), minlength=len(polygons))
    assert sizes == pytest.approx(shapely.area(shapely.intersection(area, polygons)))
    wide = shapely.buffer(area, 0.25, join_style="mitre")
    assert (extent.expanded(0.25).covers(polygons) == shapely.covers(wide, polygons)).all()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda pair: pair[0] != pair[1])), st.randoms())
def test_every_dropped_polygon_has_a_kept_one_and_no_two_kept_ones_match(
    edges: list[tuple[int, int]], order: random.Random
):
    rows = np.array(edges, np.int64).reshape(-1, 2)
    none = np.empty(0, np.int64)
    dropped = {*select_polygons(rows, np.empty((0, 2), np.int64), none).dropped.tolist()}
    assert all(dropped & {*edge} for edge in edges)
    assert all(any({one} < {*edge} and len({*edge} - dropped) == 1 for edge in edges) for one in dropped)
    shuffled = np.array(order.sample(edges, len(edges)), np.int64).reshape(-1, 2)
    assert dropped == {*select_polygons(shuffled, np.empty((0, 2), np.int64), none).dropped.tolist()}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_groups_are_connected_components(pairs: list[tuple[int, int]]):
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(rows)), rows.T), (31, 31)) if pairs else coo_matrix((31, 31))
    _, label = connected_components(graph, directed=False)
    mentioned = {each for pair in pairs for each in pair}
    expected = {tuple(sorted(each for each in mentioned if label[each] == k)) for k in label} - {()}
    groups = select_polygons(np.empty((0, 2), np.int64), rows, np.empty(0, np.int64)).merged
    assert {tuple(group.tolist()) for group in groups} == expected
    assert [*groups] == sorted(groups, key=lambda group: int(group[0]))
