"""The grid says where pixels lie, and sizes are true metres whatever the CRS."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.windows import Window

from pipeline.errors import SceneError
from pipeline.grid.raster_grid import MAX_EDGE_M, RasterGrid, measure_on_ground

UTM = CRS.from_epsg(32633)


def make_grid(transform: Affine | None = None, *, crs: CRS = UTM, height: int = 30, width: int = 20) -> RasterGrid:
    return RasterGrid(crs=crs, transform=transform or Affine(0.5, 0, 5e5, 0, -0.5, 5e6), height=height, width=width)


def reference_size(geometry: shapely.Geometry, crs: CRS) -> tuple[float, float]:
    """True area and perimeter of the finely densified outline, by other means than the code: the oracle.

    The area is that on the plane of a Lambert azimuthal equal-area projection around the polygon.
    The geodesic polygon area of `pyproj.Geod` is no oracle for small polygons: it rounds at about 1e-5 m2 an edge.
    """
    source = ProjCRS.from_user_input(crs.to_wkt())
    to_lonlat = Transformer.from_crs(source, source.geodetic_crs.to_2d(), always_xy=True)
    geod = source.get_geod()
    lon, lat = to_lonlat.transform(*geometry.centroid.coords[0])
    around = ProjCRS.from_dict({"proj": "laea", "lon_0": lon, "lat_0": lat, "a": geod.a, "rf": 1 / geod.f})
    to_plane = Transformer.from_crs(around.geodetic_crs, around, always_xy=True)
    step = min(200 / unit_m(crs), geometry.exterior.length / 64)
    area_m2 = perimeter_m = 0.0
    for sign, ring in ((1, geometry.exterior), *((-1, hole) for hole in geometry.interiors)):
        lonlat = to_lonlat.transform(*shapely.get_coordinates(shapely.segmentize(ring, step)).T)
        area_m2 += sign * shapely.Polygon(np.column_stack(to_plane.transform(*lonlat))).area
        perimeter_m += geod.line_length(*lonlat)
    return area_m2, perimeter_m


def unit_m(crs: CRS) -> float:
    return 111_320.0 if crs.is_geographic else float(crs.linear_units_factor[1])


def area_error_m2(geometry: shapely.Geometry, crs: CRS) -> float:
    """Most that the measured area may differ from the true one, since edges of up to `MAX_EDGE_M` are not densified.

    On a sphere of radius R a line that is straight on the cylindrical equal-area plane has the geodesic curvature
    `tan(lat) / R * cos(t) * (1 + 2 * sin(t)**2)` in the direction `t` from east. A line that is straight in a CRS
    curves the same way and less, or, within reach of a centre of projection, the other way by up to `0.2 / R`.
    Between a chord of length L and an arc of curvature k lie `k * L**3 / 12`. Coordinates are good to 1e-8 m.
    """
    source = ProjCRS.from_user_input(crs.to_wkt())
    to_lonlat = Transformer.from_crs(source, source.geodetic_crs.to_2d(), always_xy=True)
    geod, error_m2 = source.get_geod(), 0.0
    for ring in shapely.get_rings(geometry):
        ends = shapely.get_coordinates(shapely.segmentize(ring, MAX_EDGE_M / unit_m(crs)))
        lon, lat = to_lonlat.transform(*ends.T)
        azimuth, _, edge_m = geod.inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
        cos, sin = np.abs(np.sin(np.radians(azimuth))), np.cos(np.radians(azimuth))
        steepest = np.tan(np.radians(np.abs(lat).max()))
        curvature = (steepest * cos * (1 + 2 * sin**2) + 0.2) / geod.b
        error_m2 += float((curvature * edge_m**3 / 12 + 1e-8 * edge_m).sum())
    return error_m2


PLACES = {
    32633: (500_000, 5_000_000, 100_000),  # UTM
    32701: (300_000, 8_000_000, 100_000),  # UTM, southern, by the antimeridian
    3857: (9_500_000, 3_200_000, 100_000),  # Web Mercator: its metres are not metres
    4326: (85.0, 27.0, 1.0),  # degrees
    3031: (1_500_000, -900_000, 100_000),  # polar stereographic
    2263: (980_000, 200_000, 300_000),  # US survey feet
    5070: (500_000, 1_500_000, 100_000),  # equal-area conic
    2193: (1_600_000, 5_400_000, 100_000),  # New Zealand
}
"""EPSG code -> x, y, and how far polygons may spread from there, in CRS units."""


@st.composite
def polygons_somewhere(draw: st.DrawFn) -> tuple[CRS, shapely.Polygon]:
    """A star-shaped polygon with a hole, from a pixel to hundreds of kilometres across."""
    code = draw(st.sampled_from([*PLACES]))
    x, y, reach = PLACES[code]
    centre = x + draw(st.floats(-1, 1)) * reach, y + draw(st.floats(-1, 1)) * reach
    radius = reach * 10 ** draw(st.floats(-5, 0))
    radii = np.array(draw(st.lists(st.floats(0.4, 1), min_size=3, max_size=9)))
    angles = np.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    star = centre + radius * np.c_[radii * np.cos(angles), radii * np.sin(angles)]
    hole = centre + 0.1 * radius * np.c_[np.cos(angles), np.sin(angles)]
    return CRS.from_epsg(code), shapely.Polygon(star, [hole])


SMALL_TRIANGLE = shapely.Polygon(
    [(85.1999945, 27.86699047), (85.1999978, 27.86700381), (85.2000044, 27.867)],
    [[(85.19999945, 27.86700095), (85.19999945, 27.86699905), (85.2000011, 27.867)]],
)
"""Of half a square metre in EPSG:4326: the geodesic area of pyproj is 0.014 % wrong here."""
POLAR_TRIANGLE = shapely.Polygon(
    [(1_601_479, -800_000), (1_599_704, -799_488), (1_599_482, -800_897)],
    [[(1_600_148, -800_000), (1_599_926, -799_872), (1_599_926, -800_128)]],
)
"""In EPSG:3031: edges just short enough not to be densified, whose bends add up to 0.029 % of the area."""


@given(polygons_somewhere())
@example((CRS.from_epsg(4326), SMALL_TRIANGLE))
@example((CRS.from_epsg(3031), POLAR_TRIANGLE))
def test_areas_and_perimeters_are_geodesic_in_every_crs(case: tuple[CRS, shapely.Polygon]) -> None:
    crs, polygon = case
    area_m2, perimeter_m = measure_on_ground([polygon], crs)
    true_area_m2, true_perimeter_m = reference_size(polygon, crs)
    assert area_m2[0] == pytest.approx(true_area_m2, rel=0, abs=area_error_m2(polygon, crs))
    assert perimeter_m[0] == pytest.approx(true_perimeter_m, rel=1e-6)


@given(polygons_somewhere())
@example((CRS.from_epsg(3031), POLAR_TRIANGLE))
def test_a_whole_weighs_as_much_as_its_parts(case: tuple[CRS, shapely.Polygon]) -> None:
    crs, polygon = case
    left, bottom, right, top = polygon.bounds
    west = polygon & shapely.box(left, bottom, (left + right) / 2, top)
    east = polygon - west
    parts, _ = measure_on_ground([west, east], crs)
    whole, _ = measure_on_ground([polygon], crs)
    error_m2 = sum(area_error_m2(each, crs) for each in (polygon, west, east))
    assert parts.sum() == pytest.approx(whole[0], rel=0, abs=error_m2)


def test_a_multipolygon_adds_its_parts_and_a_hole_is_subtracted_but_its_edge_counted() -> None:
    square = shapely.box(5e5, 5e6, 5e5 + 100, 5e6 + 100)
    hole = shapely.box(5e5 + 40, 5e6 + 40, 5e5 + 60, 5e6 + 60)
    other = shapely.box(5e5 + 200, 5e6, 5e5 + 300, 5e6 + 100)
    area, length = measure_on_ground([square, hole, other, square - hole, (square - hole) | other], UTM)
    assert area[3:].tolist() == pytest.approx([area[0] - area[1], area[0] - area[1] + area[2]])
    assert length[3:].tolist() == pytest.approx([length[0] + length[1], length[0] + length[1] + length[2]])


def test_a_polygon_that_geos_would_repair_to_nothing_keeps_its_area() -> None:
    """Densified, its almost straight side crosses itself in the last bit."""
    x, y = 549_999.9999999999, 4_913_397.459621556
    polygon = shapely.Polygon([(541_406.25, 5_071_717.7287508985), (550_000, 5_000_000), (x, y), (475_000, y),
                               (475_000, 5_078_842.799481702), (453_125, 5_081_189.881604791)])  # fmt: skip
    assert shapely.segmentize(polygon, 2000).is_empty
    area_m2, _ = measure_on_ground([polygon], UTM)
    assert area_m2[0] == pytest.approx(reference_size(polygon, UTM)[0], rel=1e-4)


def test_web_mercator_squares_shrink_with_the_cosine_of_latitude() -> None:
    at_equator, at_60 = (shapely.box(0, y, 100, y + 100) for y in (0, 8_399_738))
    area_m2, _ = measure_on_ground([at_equator, at_60], CRS.from_epsg(3857))
    assert area_m2[0] == pytest.approx(1e4, rel=0.01)
    assert area_m2[1] / area_m2[0] == pytest.approx(math.cos(math.radians(60)) ** 2, rel=0.02)


@pytest.mark.parametrize(
    ("code", "polygon", "twin"),
    [
        (4326, shapely.box(179, 10, 181, 12), shapely.box(19, 10, 21, 12)),
        (3857, shapely.box(20_037_000, 0, 20_038_000, 1000), shapely.box(0, 0, 1000, 1000)),
    ],
)
def test_the_antimeridian_is_a_line_like_any_other(code: int, polygon: shapely.Polygon, twin: shapely.Polygon) -> None:
    area_m2, perimeter_m = measure_on_ground([polygon, twin], CRS.from_epsg(code))
    assert area_m2[0] == pytest.approx(area_m2[1], rel=1e-6)
    assert perimeter_m[0] == pytest.approx(perimeter_m[1], rel=1e-6)


def test_the_globe_has_the_area_of_the_ellipsoid() -> None:
    area_m2, _ = measure_on_ground([shapely.box(-180, -90, 180, 90)], CRS.from_epsg(4326))
    assert area_m2[0] == pytest.approx(510_065_621_724_000, rel=1e-9)


@pytest.mark.parametrize("code", [3031, 3413, 3995])
def test_a_polygon_around_a_pole_includes_the_pole(code: int) -> None:
    ice = shapely.Point(0, 0).buffer(2_000_000, quad_segs=64)
    area_m2, _ = measure_on_ground([ice], CRS.from_epsg(code))
    assert area_m2[0] == pytest.approx(reference_size(ice, CRS.from_epsg(code))[0], rel=1e-5)


def test_no_polygons_and_empty_polygons_measure_nothing() -> None:
    assert [values.shape for values in measure_on_ground([], UTM)] == [(0,), (0,)]
    area_m2, perimeter_m = measure_on_ground([shapely.Polygon(), shapely.box(5e5, 5e6, 5e5 + 1, 5e6 + 1)], UTM)
    assert area_m2[0] == perimeter_m[0] == 0
    assert area_m2[1] > 0


def test_beyond_the_horizon_of_a_projection_there_is_no_area() -> None:
    """Seen from a geostationary satellite, the Earth is a disk of 5,430 km; a square reaches past its limb."""
    view = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=-75 +ellps=GRS80 +sweep=x +units=m")
    across, inside, outside = (
        shapely.box(4e6, 0, 6e6, 1e5),
        shapely.box(4e6, 0, 5.4e6, 1e5),
        shapely.box(6e6, 0, 7e6, 1e5),
    )
    area_m2, perimeter_m = measure_on_ground([across, inside, outside], view)
    assert np.isfinite(perimeter_m).all()
    assert area_m2[1] * 0.99 < area_m2[0] < area_m2[1] * 1.5
    assert area_m2[2] == 0


def test_a_crs_that_floats_free_of_the_earth_has_no_true_areas() -> None:
    plane = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    with pytest.raises(SceneError, match=r"not tied to the Earth.* --crs"):
        measure_on_ground([shapely.box(0, 0, 1, 1)], plane)


transforms = st.builds(
    lambda x, y, a, e, turn, shear: (
        Affine.translation(x, y) @ Affine.rotation(turn) @ Affine.shear(shear) @ Affine.scale(a, e)
    ),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(0.1, 100),
    st.sampled_from([-2.0, -0.5, 0.5, 2.0]),
    st.floats(0, 360),
    st.floats(-30, 30),
)


@given(transforms, st.integers(1, 50), st.integers(1, 50))
def test_bounds_enclose_the_corners_of_every_pixel_tightly(transform: Affine, height: int, width: int) -> None:
    grid = make_grid(transform, height=height, width=width)
    outline = [transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    assert grid.bounds == pytest.approx(shapely.Polygon(outline).bounds)


@given(transforms, st.integers(0, 20), st.integers(0, 20))
def test_a_subgrid_lies_at_its_window(transform: Affine, row: int, col: int) -> None:
    part = make_grid(transform).part(Window(col, row, 3, 2))
    assert part.transform @ (0, 0) == pytest.approx(transform @ (col, row))
    assert part.transform @ (3, 2) == pytest.approx(transform @ (col + 3, row + 2))
    assert part.shape == (2, 3)


@given(transforms, st.floats(0.05, 400))
def test_a_resampled_grid_keeps_its_corners_and_nears_the_resolution(transform: Affine, resolution_m: float) -> None:
    grid = make_grid(transform @ Affine.scale(1, 1), crs=CRS.from_epsg(5070), height=300, width=200)
    other = grid.resampled(resolution_m)
    assert other.transform @ (other.width, other.height) == pytest.approx(transform @ (200, 300))
    assert min(other.shape) >= 1
    if min(other.shape) > 50:
        assert other.resolution_m == pytest.approx(resolution_m, rel=0.02)


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        (UTM, Affine(0.5, 0, 5e5, 0, -0.5, 5e6), 0.4998),
        (UTM, Affine(0.5, 0, 5e5, 0, 0.5, 5e6), 0.4998),  # south-up
        (UTM, Affine.translation(5e5, 5e6) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5), 0.4998),
        (UTM, Affine(0.25, 0, 5e5, 0, -1, 5e6), 0.4998),  # not square: the side of a square of equal area
        (CRS.from_epsg(3857), Affine(0.149, 0, 9_494_000, 0, -0.149, 3_210_000), 0.1317),  # Nepal
        (CRS.from_epsg(4326), Affine(1e-5, 0, 85, 0, -1e-5, 60), 0.7885),
        (CRS.from_epsg(2263), Affine(1, 0, 1e6, 0, -1, 2e5), 0.3048),  # US survey feet
    ],
)
def test_the_resolution_is_true_metres(crs: CRS, transform: Affine, metres: float) -> None:
    assert make_grid(transform, crs=crs).resolution_m == pytest.approx(metres, rel=1e-3)


@pytest.mark.parametrize(
    ("transform", "north_up"),
    [
        (Affine(1, 0, 0, 0, -1, 0), True),
        (Affine(1, 0, 0, 0, 1, 0), False),
        (Affine(-1, 0, 0, 0, -1, 0), False),
        (Affine(1, 0.1, 0, 0, -1, 0), False),
    ],
)
def test_only_the_usual_layout_is_north_up(transform: Affine, north_up: bool) -> None:
    assert make_grid(transform).is_north_up is north_up


def test_a_grid_of_no_pixels_or_of_a_flat_transform_is_refused() -> None:
    with pytest.raises(SceneError, match="at least 1 x 1 px, not 0 x 20"):
        make_grid(height=0)
    for transform in (Affine(1, 2, 0, 2, 4, 0), Affine(1, 0, 0, 0, math.nan, 0), Affine(1e300, 0, 0, 0, -1e300, 0)):
        with pytest.raises(SceneError, match="does not map pixels to an area"):
            make_grid(transform)
    with pytest.raises(SceneError, match="leads off the Earth"):
        make_grid(Affine(1, 0, 1e200, 0, -1, 0))


@given(st.floats(-80, 60), st.integers(1, 200), st.integers(1, 30))
def test_the_resolution_of_a_grid_in_degrees_is_that_of_its_middle(south: float, height: int, width: int) -> None:
    """A degree of longitude shrinks towards the poles, so the pixels of a tall scene differ in size."""
    grid = make_grid(
        Affine(0.1, 0, 10, 0, -0.1, south + height / 10), crs=CRS.from_epsg(4326), height=height, width=width
    )
    middle = grid.part(Window(width // 2, height // 2, 1, 1))
    assert grid.resolution_m == pytest.approx(middle.resolution_m, rel=1e-12)
