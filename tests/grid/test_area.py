"""An area: read with care, brought to a scene's pixels from any CRS, and nothing outside it is read or run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
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
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.features import geometry_mask, rasterize
from rasterio.windows import Window
from rasterio.windows import intersect as meet
from support.models import ROOF, write_checkpoint

from pipeline.catalog.read import read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.config import SegmentSpec, build_settings
from pipeline.errors import SceneError, SettingsError
from pipeline.grid.area import Area, load_area
from pipeline.grid.area_pixels import AreaPixels, rasterize_area
from pipeline.grid.raster_grid import RasterGrid
from pipeline.inference.blend import Blend, plan_blend_weights
from pipeline.inference.tiling import chunks
from pipeline.inference.tiling.tiles import TilingSpec, plan_tiles, resolve_tiling
from pipeline.model.predictor.loading import load_predictor
from pipeline.polygons.shaping import PolygonSpec
from pipeline.run.models import load_run_models
from pipeline.scene.reader import SceneReader
from pipeline.segment import segment_scene

UTM = "EPSG:32633"


def grid_of(crs: str, transform: tuple[float, ...], height: int, width: int) -> RasterGrid:
    return RasterGrid(crs=CRS.from_user_input(crs), transform=Affine(*transform), height=height, width=width)


def area_of(shape: shapely.Geometry, crs: str) -> Area:
    return Area(name="area", crs=CRS.from_user_input(crs), shape=shape)


def to_map(drawn: shapely.Geometry, grid: RasterGrid) -> shapely.Geometry:
    """What is drawn in `(col, row)`, in the grid's CRS, made valid where rounding made it touch itself."""
    return shapely.affinity.affine_transform(drawn, grid.transform.to_shapely()).buffer(0)


def dense(pixels: AreaPixels | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    inside = np.full(shape, pixels is None)
    if pixels is not None:
        for row, first, stop in pixels.runs(0, shape[0]):
            inside[row, first:stop] = True
    return inside


def write(path: Path, shapes: list[Any], crs: str | None = UTM) -> Path:
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, layer="area")
    return path


# The file

SQUARE = shapely.box(500_010, 4_999_990, 500_015, 4_999_995)


@pytest.mark.parametrize("name", ["a.gpkg", "a.parquet", "a.fgb", "a.shp"])
def test_polygons_of_a_file_are_united_in_their_crs(tmp_path: Path, name: str) -> None:
    neighbour = shapely.transform(SQUARE, lambda points: points + np.array([2, 0]))
    found = load_area(write(tmp_path / name, [shapely.force_3d(SQUARE), shapely.force_3d(neighbour)]))
    assert found.crs == CRS.from_user_input(UTM)
    assert found.shape.equals(shapely.box(500_010, 4_999_990, 500_017, 4_999_995))
    assert not found.shape.has_z


def test_geojson_is_in_longitudes_and_latitudes(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(shapely.to_geojson(shapely.box(14, 45, 15, 46)))
    assert load_area(path).crs == CRS.from_epsg(4326)
    path.write_text(shapely.to_geojson(SQUARE))
    with pytest.raises(SettingsError, match="CRS is in degrees, but it lies between"):
        load_area(path)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [SQUARE])
    first = load_area(path)
    assert load_area(path) is first
    write(path, [SQUARE.buffer(1)])
    assert load_area(path).shape.area > first.shape.area


BOW_TIE = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
REFUSED = {
    "no such file": (lambda path: None, "cannot be read: No such file"),
    "not what it says": (lambda path: path.write_bytes(b"<OGRVRTDataSource/>"), "does not begin like a .gpkg file"),
    "damaged": (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(80)), "cannot be read"),
    "no crs": (lambda path: write(path, [SQUARE], crs=None), "has no CRS"),
    "nothing": (lambda path: write(path, [None, shapely.Polygon()]), "holds no polygon"),
    "points": (lambda path: write(path, [SQUARE, SQUARE.centroid]), "row 2: is a Point"),
    "a bow tie": (lambda path: write(path, [SQUARE, BOW_TIE]), r"row 2: is not a valid polygon \(Self-intersection"),
    "two layers": (lambda path: two_layers(path), "the layers area, more of geometries"),
}


def two_layers(path: Path) -> None:
    write(path, [SQUARE])
    geopandas.GeoDataFrame(geometry=[SQUARE], crs=UTM).to_file(path, layer="more")


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=list(REFUSED))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of geopandas, for a file without a CRS
def test_what_is_no_area_is_refused_with_the_reason(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "a.gpkg"
    make(path)
    with pytest.raises(SettingsError, match=message) as refused:
        load_area(path)
    assert str(refused.value).startswith(f"area: {path}")


def test_a_kind_of_file_that_is_not_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.kml").write_text("<kml/>")
    with pytest.raises(SettingsError, match=r"use one of .gpkg, .geojson"):
        load_area(tmp_path / "a.kml")


# Pixels


@st.composite
def drawings(draw: st.DrawFn) -> shapely.Geometry:
    place = st.floats(-10, 50, allow_nan=False)
    corners = st.lists(st.tuples(place, place), min_size=3, max_size=8)
    hulls = [
        shapely.convex_hull(shapely.multipoints(draw(corners))).buffer(0.1, 2) for _ in range(draw(st.integers(1, 4)))
    ]
    return shapely.union_all(hulls[::2]) - shapely.union_all(hulls[1::2])


@settings(max_examples=60)
@given(drawings(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_pixel_lies_in_an_area_when_its_centre_does(
    drawn: shapely.Geometry, height: int, width: int, rows: int
) -> None:
    grid = grid_of(UTM, (0.5, 0.2, 500_000, 0.1, -0.5, 5_000_000), height, width)
    found = rasterize_area(area_of(to_map(drawn, grid), UTM), grid)
    centres = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    sure = ~shapely.intersects_xy(drawn.boundary.buffer(1e-5), *centres)
    inside = dense(found, (height, width))
    assert np.array_equal(inside[sure], shapely.contains_xy(drawn, *centres)[sure])
    if found is not None:
        assert found.count == inside.sum()
        cuts = pairwise([*range(0, height, rows), height])
        assert np.array_equal(np.concatenate([found.runs(*cut) for cut in cuts]), found.runs(0, height))
        assert np.array_equal(found.columns(0, min(rows, height)), inside[:rows].any(axis=0))


def test_pixels_are_those_of_rasterio() -> None:
    star = shapely.Polygon(
        [
            (20 + r * np.sin(t), 20 + r * np.cos(t))
            for t, r in zip(np.linspace(0, 6, 23), [19.3, 7.1] * 12, strict=False)
        ]
    )
    grid = grid_of(UTM, (1, 0, 500_000, 0, -1, 5_000_000), 40, 41)
    drawn = to_map(star, grid)
    expected = geometry_mask([drawn], grid.shape, grid.transform, invert=True, all_touched=False)
    assert np.array_equal(dense(rasterize_area(area_of(drawn, UTM), grid), grid.shape), expected)


def test_areas_that_share_a_border_share_no_pixel_and_leave_none() -> None:
    grid = grid_of(UTM, (1, 0, 0.5, 0, -1, 10.5), 10, 10)  # borders go through centres
    parts = [shapely.box(0, 0, 4, 20), shapely.box(4, 0, 20, 5), shapely.box(4, 5, 20, 20)]
    times = sum(dense(rasterize_area(area_of(part, UTM), grid), grid.shape).astype(int) for part in parts)
    assert (times == 1).all()


def test_all_of_a_scene_is_no_restriction_and_nothing_of_it_is_one() -> None:
    grid = grid_of(UTM, (1, 0, 0, 0, -1, 10), 10, 10)
    assert rasterize_area(area_of(shapely.box(0, 0, 10, 10), UTM), grid) is None
    nothing = rasterize_area(area_of(shapely.box(100, 0, 110, 10), UTM), grid)
    assert nothing is not None
    assert nothing.count == 0


# Other CRSs

PLACES = {
    "degrees on a UTM scene": (
        grid_of(UTM, (100, 0, 300_000, 0, -100, 5_400_000), 1098, 1098),
        area_of(shapely.box(12.6, 47.9, 13.4, 48.5) - shapely.box(12.9, 48.0, 13.1, 48.2), "EPSG:4326"),
    ),
    "UTM on a scene in degrees": (
        grid_of("EPSG:4326", (0.001, 0, 12, 0, -0.001, 49), 1000, 1500),
        area_of(shapely.Polygon([(300_000, 5_300_000), (390_000, 5_400_000), (310_000, 5_420_000)]), UTM),
    ),
    "the world": (
        grid_of(UTM, (100, 0, 300_000, 0, -100, 5_400_000), 50, 50),
        area_of(shapely.box(-180, -90, 180, 90), "EPSG:4326"),
    ),
    "a half of the world": (
        grid_of(UTM, (100, 0, 300_000, 0, -100, 5_400_000), 300, 300),
        area_of(shapely.box(-180, 48.6, 180, 90), "EPSG:4326"),
    ),
    "two parts that meet at the antimeridian": (
        grid_of("EPSG:32760", (100, 0, 800_000, 0, -100, 8_200_000), 500, 700),
        area_of(shapely.union(shapely.box(179.5, -17, 180, -16.5), shapely.box(-180, -17, -179.9, -16.6)), "EPSG:4326"),
    ),
    "UTM across the antimeridian on a scene in degrees": (
        grid_of("EPSG:4326", (0.01, 0, 179, 0, -0.01, -16), 100, 200),
        area_of(shapely.box(790_000, 8_140_000, 860_000, 8_190_000), "EPSG:32760"),
    ),
    "degrees past 180 on a scene that starts at -180": (
        grid_of("EPSG:4326", (0.01, 0, -180, 0, -0.01, -16), 100, 100),
        area_of(shapely.box(179.7, -16.5, 180.4, -16.1), "EPSG:4326"),
    ),
    "degrees on a scene round the pole": (
        grid_of("EPSG:3413", (10_000, 0, -2_005_000, 0, -10_000, 2_005_000), 401, 401),
        area_of(shapely.box(-180, 80, 180, 90) - shapely.box(-30, 82, 40, 86), "EPSG:4326"),
    ),
    "round the pole on a scene in degrees": (
        grid_of("EPSG:4326", (0.5, 0, -180, 0, -0.5, 90), 60, 720),
        area_of(
            shapely.box(-1_500_000, -1_500_000, 1_500_000, 1_000_000)
            - shapely.box(-400_000, -400_000, 300_000, 300_000),
            "EPSG:3413",
        ),
    ),
    "degrees on the whole of Web Mercator": (
        grid_of("EPSG:3857", (156_543, 0, -20_037_508, 0, -156_543, 20_037_508), 256, 256),
        area_of(shapely.box(-179.99, -60, -20, 70.5), "EPSG:4326"),
    ),
}


@pytest.mark.parametrize(("grid", "area"), PLACES.values(), ids=list(PLACES))
def test_an_area_in_another_crs_holds_the_centres_that_it_holds_in_its_own(grid: RasterGrid, area: Area) -> None:
    cols, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    back = Transformer.from_crs(grid.crs.to_wkt(), area.crs.to_wkt(), always_xy=True)
    x, y = np.asarray(back.transform(*(grid.transform @ (cols.ravel(), rows.ravel()))))
    turns = (-360, 0, 360) if area.crs.is_geographic else (0,)
    held = np.any([shapely.intersects_xy(area.shape, x + turn, y) for turn in turns], axis=0)
    inside = dense(rasterize_area(area, grid), grid.shape).ravel()
    assert held.any()
    assert (inside != held).sum() <= 0.002 * held.sum() + 1e-5 * held.size
    wrong = np.flatnonzero(inside != held)
    near = shapely.distance(shapely.points(x[wrong], y[wrong]), area.shape.boundary)
    assert (near < 0.03 * (1 if area.crs.is_geographic else 1e5) * grid.resolution_m / 1e5 + 1e-6).all()


def test_an_area_beyond_the_horizon_of_the_scene_is_refused() -> None:
    disk = grid_of(
        "+proj=geos +h=35785831 +lon_0=-75 +sweep=x", (20_000, 0, -5_434_000, 0, -20_000, 5_434_000), 542, 542
    )
    with pytest.raises(SceneError, match="extends beyond the domain of the scene's CRS"):
        rasterize_area(area_of(shapely.box(0, 0, 179, 60), "EPSG:4326"), disk)


# Scenes


def spots(tiles: NDArray[Any]) -> NDArray[Any]:
    """Differs with the place in the tile, so that a tile that is left out shows."""
    return np.clip(tiles / 255 + np.linspace(0, 0.1, tiles.shape[3], dtype=np.float32), 0, 1)


def segment(scene: Path, out: Path, area: Path | None, **more: Any) -> Any:
    spec = SegmentSpec(area=None if area is None else str(area), tiling=TilingSpec(tile_size=32, overlap=12), **more)
    return segment_scene(scene, out, predictor=spots, card=ROOF, spec=spec)


def rasters(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    with rasterio.open(folder / "probability.tif") as probability, rasterio.open(folder / "mask.tif") as mask:
        return probability.read(1), mask.read(1)


@pytest.fixture
def scene(make_scene: MakeScene) -> Path:
    """150 x 200 px of half a metre from (500000, 5000000) on."""
    return make_scene(bands=1, height=150, width=200, descriptions=["red"], tiled=16, name="s.tif")


CORNER = shapely.Polygon([(500_030, 5_399_950), (500_055, 5_399_950), (500_055, 5_399_980)])
"""A triangle in pixels (60, 100), (110, 100), (110, 40)."""


@pytest.mark.parametrize("blend", ["hann", "pyramid", "average", "crop"])
def test_only_chunks_and_tiles_that_add_to_the_area_are_read_and_run(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blend: Blend
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)
    monkeypatch.setattr(chunks, "CHUNK_COLS", 16)
    seen: list[Window] = []
    read = SceneReader.read
    monkeypatch.setattr(SceneReader, "read", lambda reader, window: seen.append(window) or read(reader, window))
    report = segment(scene, tmp_path, write(tmp_path / "a.gpkg", [CORNER]), blend=blend)

    plan = plan_tiles((150, 200), resolve_tiling(TilingSpec(tile_size=32, overlap=12), ROOF, exact=False))
    inside = dense(
        rasterize_area(area_of(CORNER, UTM), grid_of(UTM, (0.5, 0, 500_000, 0, -0.5, 5_400_000), 150, 200)), (150, 200)
    )
    shares = [plan_blend_weights(axis, blend) for axis in (plan.rows, plan.cols)]
    wanted = [
        plan.tile(row, col).window
        for row, down in enumerate(shares[0])
        for col, across in enumerate(shares[1])
        if inside[down.start : down.stop, across.start : across.stop].any()
    ]
    every = [
        Window(col, row, min(16, 200 - col), min(16, 150 - row))
        for row in range(0, 150, 16)
        for col in range(0, 200, 16)
    ]
    expected = [chunk for chunk in every if any(meet([chunk, window]) for window in wanted)]
    assert sorted(map(str, seen)) == sorted(map(str, expected))
    assert report.statistics.tiles_run == len(wanted) < len(plan) / 2
    assert report.statistics.tiles_run + report.statistics.tiles_skipped == len(plan)


def test_the_result_of_an_area_is_cut_from_that_of_the_scene(scene: Path, tmp_path: Path) -> None:
    area = write(tmp_path / "a.gpkg", [CORNER])
    whole, cut = segment(scene, tmp_path / "whole", None), segment(scene, tmp_path / "cut", area)
    (probability, mask), (cut_probability, cut_mask) = rasters(Path(whole.folder)), rasters(Path(cut.folder))
    with rasterio.open(scene) as dataset:
        outside = geometry_mask([CORNER], dataset.shape, dataset.transform)
    assert np.array_equal(cut_probability, np.where(outside, 255, probability))
    assert np.array_equal(cut_mask, np.where(outside, 255, mask))
    assert cut.statistics.valid_pixels == (~outside).sum()
    assert (cut.inputs.area, cut.inputs.area_share) == ("a.gpkg", (~outside).sum() / outside.size)
    polygons = geopandas.read_file(Path(cut.folder) / "polygons.gpkg", layer="polygons")
    drawn = rasterize(polygons.geometry, outside.shape, transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000))
    assert np.array_equal(drawn == 1, cut_mask == 1)


def test_an_area_outside_the_scene_gives_no_output_and_runs_nothing(scene: Path, tmp_path: Path) -> None:
    report = segment(scene, tmp_path, write(tmp_path / "a.gpkg", [shapely.box(0, 0, 10, 10)]))
    statistics = report.statistics
    assert (statistics.tiles_run, statistics.valid_pixels, report.polygons, report.inputs.area_share) == (0, 0, 0, 0.0)
    assert (rasters(Path(report.folder))[0] == 255).all()


def test_a_mean_of_turned_tiles_of_two_networks_is_clipped_consistently(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(bands=3, height=90, width=130, colorinterp=["red", "green", "blue"])
    inferred = {"precision": "float32", "augment": "flips", "batch_size": 3}
    paths = [write_checkpoint(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    found = {}
    for name, area in (
        ("whole", None),
        ("cut", write(tmp_path / "a.gpkg", [shapely.box(500_010, 5_399_970, 500_022, 5_399_990)])),
    ):
        spec = build_settings(
            SegmentSpec,
            {
                "area": area and str(area),
                "inference": inferred,
                "tiling": {"tile_size": 64},
                "distribute": {"regions": 2},
            },
            place="test",
        )
        model = load_run_models(paths, spec)
        found[name] = rasters(Path(segment_scene(scene, tmp_path / name, predictor=model, spec=spec).folder))[0]
    kept = found["cut"] != 255
    assert kept.sum() == 24 * 40
    assert np.array_equal(found["cut"][kept], found["whole"][kept])


def test_the_content_key_follows_the_pixels_of_the_area_not_its_file(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(bands=3, height=60, width=60, colorinterp=["red", "green", "blue"])
    model = load_predictor(write_checkpoint(tmp_path / "m.safetensors"))
    square = shapely.box(500_010.1, 5_399_980.1, 500_020.1, 5_399_990.1)
    turned = geopandas.GeoSeries([square], crs=UTM).to_crs(4326)[0]
    steps = [
        ("a.gpkg", [square], UTM, "done"),
        ("b.geojson", [turned, turned], "EPSG:4326", "skipped"),
        ("c.parquet", [square, shapely.box(0, 0, 1, 1)], UTM, "skipped"),
        ("a.gpkg", [square.buffer(2)], UTM, "done"),
        ("d.gpkg", [shapely.box(400_000, 4_000_000, 600_000, 6_000_000)], UTM, "done"),
    ]
    for name, shapes, crs, status in steps:
        spec = SegmentSpec(area=str(write(tmp_path / name, shapes, crs)))
        assert segment_scene(scene, tmp_path / "out", predictor=model, spec=spec).status == status, name
    whole = segment_scene(scene, tmp_path / "out", predictor=model)
    assert (whole.status, whole.inputs.area_share) == ("skipped", 1.0), (
        "an area that holds all of a scene changes nothing"
    )


def test_other_polygons_of_a_finished_scene_read_no_more_of_it_than_the_area(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)
    monkeypatch.setattr(chunks, "CHUNK_COLS", 16)
    scene = make_scene(bands=3, height=150, width=200, colorinterp=["red", "green", "blue"], tiled=16)
    model = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    area = str(write(tmp_path / "a.gpkg", [CORNER]))
    spec = build_settings(SegmentSpec, {"area": area, "tiling": {"tile_size": 32, "overlap": 8}}, place="test")
    segment_scene(scene, tmp_path / "out", predictor=model, spec=spec)
    seen: list[Window] = []
    read = SceneReader.read
    monkeypatch.setattr(SceneReader, "read", lambda reader, window: seen.append(window) or read(reader, window))
    other = replace(spec, polygons=PolygonSpec(threshold=0.6))
    again = segment_scene(scene, tmp_path / "out", predictor=model, spec=other)
    assert again.statistics.tiles_run < 20
    assert 0 < len(seen) < 60
    afresh = segment_scene(scene, tmp_path / "afresh", predictor=model, spec=other)
    assert (Path(again.folder) / "preview.png").read_bytes() == (Path(afresh.folder) / "preview.png").read_bytes()


def test_the_area_of_a_region_job_can_be_pickled() -> None:
    grid = grid_of(UTM, (0.5, 0, 500_000, 0, -0.5, 5_400_000), 150, 200)
    here = rasterize_area(area_of(CORNER, UTM), grid)
    there = pickle.loads(pickle.dumps(here))
    assert here is not None
    assert there.digest == here.digest
    assert np.array_equal(there.runs(0, 150), here.runs(0, 150))


# Catalogs


@pytest.mark.parametrize("name", ["t.gpkg", "t.parquet"])
def test_footprints_of_a_table_say_which_scenes_touch_an_area(tmp_path: Path, name: str) -> None:
    ring = shapely.box(10, 0, 19, 9) - shapely.box(12, 2, 17, 7)
    squares = [shapely.box(x, y, x + 1, y + 1) for x, y in ((9, 0), (14, 4), (18.5, 8.5), (30, 3), (-351, 8))]
    table = geopandas.GeoDataFrame({"path": [f"{place}.tif" for place in "abcde"]}, geometry=squares, crs=4326)
    table.to_parquet(tmp_path / name) if name.endswith("parquet") else table.to_file(tmp_path / name)
    excluded: list[str] = []
    area = write(tmp_path / "a.gpkg", [geopandas.GeoSeries([ring], crs=4326).to_crs(3857)[0]], "EPSG:3857")
    chosen = read_catalog([tmp_path / name], area=area, on_excluded=lambda entry, _: excluded.append(entry.id))
    assert [entry.id for entry in chosen] == ["a", "c", "e"]
    assert excluded == ["b", "d"]
    boxed = read_catalog([tmp_path / name], CatalogSpec(bbox=(0, 0, 11, 9)), area=area)
    assert [entry.id for entry in boxed] == ["a", "e"]


def test_bounds_of_an_area_go_the_short_way_round(tmp_path: Path) -> None:
    parts = [shapely.box(178, -18, 180, -16), shapely.box(-180, -18, -179, -15)]
    assert load_area(write(tmp_path / "a.gpkg", parts, "EPSG:4326")).bbox == (178, -18, -179, -15)
