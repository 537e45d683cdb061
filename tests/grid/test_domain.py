"""A grid on the Earth is never refused, whatever its projection, rotation and size; one that leads off it always is."""

from __future__ import annotations

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS

from pipeline.errors import SceneError
from pipeline.grid import RasterGrid, check_on_earth

SINUSOIDAL = "+proj=sinu +lon_0=0 +R=6371007.181 +units=m"
GEOS = "+proj=geos +h=35785831 +lon_0=-75 +ellps=GRS80 +sweep=x +units=m"
ROTATED = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +ellps=WGS84"
TURNS = st.floats(-3600, 3600)


def grid_of(crs: str, transform: Affine, height: int = 100, width: int = 120) -> RasterGrid:
    return RasterGrid(crs=CRS.from_user_input(crs), transform=transform, height=height, width=width)


def grid_at(
    crs: str, lon: float, lat: float, *, pixel: float = 10.0, turn: float = 0.0, height: int = 100, width: int = 120
) -> RasterGrid:
    """A grid whose first pixel lies at a longitude and latitude."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    place = Affine.translation(x, y) @ Affine.rotation(turn) @ Affine.scale(pixel, -pixel)
    return grid_of(crs, place, height, width)


# On the Earth


@given(zone=st.integers(1, 60), lat=st.floats(-84, 84), off=st.floats(-20, 20), turn=TURNS, side=st.integers(1, 11_000))
def test_utm_scenes_far_beyond_their_zone_and_across_the_antimeridian(
    zone: int, lat: float, off: float, turn: float, side: int
) -> None:
    code = (32600 if lat >= 0 else 32700) + zone
    check_on_earth(grid_at(f"EPSG:{code}", 6 * zone - 183 + off, lat, turn=turn, height=side, width=side))


@given(
    crs=st.sampled_from(["EPSG:3413", "EPSG:3031", "EPSG:3995", "EPSG:3035", "EPSG:5070", "EPSG:3338", "EPSG:2056"]),
    turn=TURNS, side=st.integers(1, 5_000),
    where=st.tuples(st.floats(-179.9, 179.9), st.floats(-89.9, 89.9)),
)  # fmt: skip
def test_polar_conic_and_oblique_scenes_near_where_they_are_used(
    crs: str, turn: float, side: int, where: tuple[float, float]
) -> None:
    use = CRS.from_user_input(crs)
    assert use is not None
    west, south, east, north = {
        "EPSG:3413": (-180, 60, 180, 90), "EPSG:3031": (-180, -90, 180, -60), "EPSG:3995": (-180, 60, 180, 90),
        "EPSG:3035": (-16, 33, 38, 84), "EPSG:5070": (-124, 25, -67, 49), "EPSG:3338": (-179, 51, -130, 71),
        "EPSG:2056": (6, 45, 10, 48),
    }[crs]  # fmt: skip
    lon = west + (where[0] + 180) / 360 * (east - west)
    lat = south + (where[1] + 90) / 180 * (north - south)
    check_on_earth(grid_at(crs, lon, lat, turn=turn, height=side, width=side))


@given(x=st.floats(-20_037_508, 20_037_508), y=st.floats(-20_037_508, 20_037_508), pixel=st.floats(0.01, 150_000))
def test_web_mercator_up_to_its_limits_and_beyond_the_antimeridian(x: float, y: float, pixel: float) -> None:
    check_on_earth(grid_of("EPSG:3857", Affine(pixel, 0, x, 0, -pixel, y), 3, 120))


@given(lon=st.floats(-180, 359), lat=st.floats(-89.9, 89.9), turn=TURNS)
def test_degrees_from_minus_180_to_360(lon: float, lat: float, turn: float) -> None:
    check_on_earth(
        grid_of("EPSG:4326", Affine.translation(lon, lat) @ Affine.rotation(turn) @ Affine.scale(5e-4, -5e-4))
    )


@pytest.mark.parametrize(
    ("crs", "transform", "shape"),
    [
        ("EPSG:4326", Affine(0.25, 0, -180.125, 0, -0.25, 90.125), (721, 1440)),  # pixel centres on the poles
        ("EPSG:4326", Affine(0.25, 0, 0, 0, 0.25, -90), (720, 1440)),  # south-up, 0 to 360
        ("EPSG:4326", Affine(1, 0, -180, 0, -1, 90), (180, 361)),  # first meridian twice
        ("+proj=longlat +ellps=GRS80 +pm=paris", Affine(0.5, 0, -180, 0, -0.5, 90), (360, 720)),
        ("EPSG:4807", Affine(0.1, 0, 0, 0, -0.1, 54), (50, 60)),  # grads
        ("EPSG:3857", Affine(156543, 0, -20037508, 0, -156543, 20037508), (256, 256)),
        ("EPSG:3395", Affine(100_000, 0, -20037508, 0, -100_000, 19e6), (380, 400)),
        ("EPSG:3832", Affine(10_000, 0, -3e6, 0, -10_000, 5e6), (1000, 1200)),  # Pacific, central meridian 150
        ("EPSG:8857", Affine(100_000, 0, -17.3e6, 0, -100_000, 8.4e6), (168, 346)),  # corners beyond Equal Earth
        ("ESRI:54009", Affine(100_000, 0, -18.1e6, 0, -100_000, 9.1e6), (182, 362)),
        ("ESRI:54030", Affine(100_000, 0, -17.1e6, 0, -100_000, 8.7e6), (174, 342)),
        (SINUSOIDAL, Affine(463.3127, 0, -20015109.354, 0, -463.3127, 1111950.52), (2400, 2400)),  # MODIS h00v08
        (SINUSOIDAL, Affine(463.3127, 0, -8895604.157, 0, -463.3127, 8895604.157), (2400, 2400)),  # MODIS h10v01
        (GEOS, Affine(20_000, 0, -5.43e6, 0, -20_000, 5.43e6), (543, 543)),  # the full disk
        (GEOS, Affine(100_000, 0, 4e6, 0, -1000, 1e5), (40, 50)),  # its middle in space
        ("+proj=ortho +lat_0=40 +lon_0=10 +ellps=WGS84", Affine(50_000, 0, -6.4e6, 0, -50_000, 6.4e6), (256, 256)),
        ("EPSG:3408", Affine(25_000, 0, -9.1e6, 0, -25_000, 9.1e6), (728, 728)),  # the northern hemisphere
        ("EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000), (500, 500)),  # feet
        ("EPSG:27700", Affine(10, 0, 400_000, 0, -10, 1_200_000), (5000, 3000)),
        ("EPSG:2193", Affine(0.1, 0, 1_570_000, 0, -0.1, 5_180_000), (9000, 9000)),
        ("EPSG:32661", Affine(1000, 0, 0, 0, -1000, 4_000_000), (4000, 4000)),
        (ROTATED, Affine(0.2, 0, -28, 0, -0.2, 21), (200, 250)),
    ],
)  # fmt: skip
def test_known_products_lie_on_the_earth(crs: str, transform: Affine, shape: tuple[int, int]) -> None:
    check_on_earth(grid_of(crs, transform, *shape))


# Off the Earth


@pytest.mark.parametrize(
    ("crs", "transform", "reason"),
    [
        ("EPSG:4326", Affine(0.2, 0, 5, 0, -0.2, 120), "its latitudes run from 100.1 to 119.9 degrees"),
        ("EPSG:4326", Affine(0.2, 0, 5, 0, -0.2, -95), "its latitudes run from -114.9 to -95.1 degrees"),
        ("EPSG:4326", Affine(0.001, 0, -33, 0, -0.001, 150.9), "latitudes run from 150.8.* swapped"),
        ("EPSG:4326", Affine(0.1, 0, 5, 0, -0.1, 95), "latitudes run from 85.05 to 94.95"),
        ("EPSG:4326", Affine(0.1, 0, 5, 0, 0.1, -95), "latitudes run from -94.95 to -85.05"),
        ("EPSG:4326", Affine.translation(0, 89) @ Affine.rotation(45) @ Affine.scale(0.1, -0.1), "latitudes run from"),
        ("EPSG:4326", Affine(10, 0, 500_000, 0, -10, 5_400_000), "latitudes run from"),
        ("EPSG:4326", Affine(10, 0, 500_000, 0, -0.1, 50), "longitudes run from 500005"),
        ("EPSG:32633", Affine(10, 0, 5e7, 0, -10, 5.4e6), "x 50000000 to 50001200, .* is no place in its CRS"),
        ("EPSG:32633", Affine(10, 0, 1e8, 0, -10, 5.4e6), "is no place in its CRS"),
        ("EPSG:32633", Affine(10, 0, -5e7, 0, -10, 5.4e6), "is no place in its CRS"),
        ("EPSG:3857", Affine(10, 0, 2e8, 0, -10, 5.4e6), "is no place in its CRS"),
        ("EPSG:3035", Affine(10, 0, 5e7, 0, -10, 5.4e6), "is no place in its CRS"),
        ("EPSG:8857", Affine(10, 0, 1e5, 0, -10, 3e7), "is no place in its CRS"),
        (GEOS, Affine(1000, 0, 6e6, 0, -1000, 1e5), "is no place in its CRS"),
    ],
)
def test_a_grid_off_the_earth_is_refused_with_its_coordinates(crs: str, transform: Affine, reason: str) -> None:
    with pytest.raises(SceneError, match=rf"leads off the Earth: .*{reason}"):
        check_on_earth(grid_of(crs, transform))
