"""Area of interest of a run: the union of the polygons of a file, in the file's CRS."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from pipeline.errors import SceneError, SettingsError
from pipeline.grid.footprint import Bbox, bbox_of
from pipeline.grid.geographic import FULL_CIRCLE_DEG, to_geographic
from pipeline.storage import check_vector, import_pyogrio

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

POLYGONS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
"""Geometry types that an area may hold."""
MAX_LATITUDE_DEG = 90.0
"""Largest latitude, degrees."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """The polygons that a run is restricted to."""

    name: str
    """Name of its file."""
    crs: CRS
    """CRS of its coordinates."""
    shape: shapely.Geometry
    """Union of valid 2D polygons; edges are straight in `crs`."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its polygons and its CRS."""
        drawn = shapely.to_wkb(shapely.normalize(self.shape), byte_order=1)
        return hashlib.sha256(drawn + self.crs.to_wkt().encode()).hexdigest()

    @cached_property
    def geographic(self) -> shapely.Geometry:
        """The area in longitudes and latitudes, see `to_geographic`."""
        return to_geographic(self.shape, self.crs.to_wkt())

    @cached_property
    def bbox(self) -> Bbox:
        """Its bounds in degrees, the shorter way round the Earth."""
        west, south, east, north = shapely.bounds(shapely.get_parts(self.geographic)).T
        start = (west + FULL_CIRCLE_DEG / 2) % FULL_CIRCLE_DEG - FULL_CIRCLE_DEG / 2
        spans = zip(start.tolist(), (start + east - west).tolist(), strict=True)
        return bbox_of([*spans], float(south.min()), float(north.max()))


def load_area(path: str | Path) -> Area:
    """Read an area from GeoPackage, GeoJSON, GeoParquet, FlatGeobuf or a shapefile; an unchanged file is read once.

    Raises:
        SettingsError: the file is missing, has no CRS, several layers, no polygon, or an invalid geometry.
    """
    place = Path(path).expanduser()
    try:
        found = place.stat()
    except OSError as error:
        raise SettingsError(f"area: {path}: cannot be read: {error.strerror}; check the path") from error
    return _load(place, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4)
def _load(path: Path, _modified_ns: int, _size_bytes: int) -> Area:
    """Read a file; time and size are keys of the cache."""
    try:
        check_vector(path)
        frame = _reader_of(path)(path)
    except SettingsError as error:
        raise SettingsError(f"area: {error}") from error
    except (OSError, RuntimeError, ValueError, shapely.errors.ShapelyError) as error:
        raise SettingsError(f"area: {path}: cannot be read: {' '.join(str(error).split())}; check the file") from error
    shapes = shapely.force_2d(np.asarray(frame.geometry.array, dtype=object))
    crs = _crs_of(frame, path)
    _check_shapes(shapes, path)
    if crs.is_geographic:
        _check_degrees(shapely.total_bounds(shapes), path)
    area = Area(name=path.name, crs=crs, shape=shapely.union_all(shapes))
    try:
        area.bbox  # noqa: B018 - computed here, so that an unusable CRS is reported before any scene
    except SceneError as error:
        raise SettingsError(f"area: {path}: {error}") from error
    return area


def _reader_of(path: Path) -> Callable[[Path], GeoDataFrame]:
    return _read_parquet if path.suffix.lower() in (".parquet", ".geoparquet") else _read_layer


def _read_parquet(path: Path) -> GeoDataFrame:
    from geopandas import read_parquet

    return read_parquet(path)


def _read_layer(path: Path) -> GeoDataFrame:
    pyogrio = import_pyogrio()
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if len(layers) != 1:
        found = f"the layers {', '.join(layers)}" if layers else "no layer"
        raise SettingsError(f"{path}: has {found} of geometries; an area is the polygons of one layer")
    frame: GeoDataFrame = pyogrio.read_dataframe(path, layer=layers[0], columns=[])
    return frame


def _crs_of(frame: GeoDataFrame, path: Path) -> CRS:
    """The CRS of the file; in a GeoPackage it may be the undefined one."""
    found = frame.crs
    if found is None or found.is_engineering or found.name.startswith("Undefined"):
        raise SettingsError(f"area: {path}: has no CRS, so its position is unknown; write it with its CRS")
    return CRS.from_wkt(found.to_wkt())


def _check_shapes(shapes: NDArray[np.object_], path: Path) -> None:
    """Refuse geometries that are not valid polygons; rows without a geometry are skipped."""
    drawn = np.flatnonzero(~shapely.is_missing(shapes) & ~shapely.is_empty(shapes))
    if not len(drawn):
        raise SettingsError(f"area: {path}: holds no polygon, so no pixel of any scene would remain; check the file")
    is_area = np.isin(shapely.get_type_id(shapes[drawn]), POLYGONS)
    wrong = drawn[~(is_area & shapely.is_valid(shapes[drawn]))]
    if len(wrong):
        raise SettingsError(f"area: {path}, row {wrong[0] + 1}: {_fault_of(shapes[wrong[0]])}")


def _fault_of(shape: shapely.Geometry) -> str:
    if shape.geom_type not in ("Polygon", "MultiPolygon"):
        return f"is a {shape.geom_type}; an area is made of polygons"
    return f"is not a valid polygon ({shapely.is_valid_reason(shape)}); repair it, e.g. with ST_MakeValid"


def _check_degrees(bounds: NDArray[np.float64], path: Path) -> None:
    """Refuse metres that are declared as degrees, as happens in GeoJSON, which has no other CRS."""
    left, bottom, right, top = map(float, bounds)
    if max(-left, right) > FULL_CIRCLE_DEG or max(-bottom, top) > MAX_LATITUDE_DEG:
        raise SettingsError(
            f"area: {path}: its CRS is in degrees, but it lies between {left:g}, {bottom:g} and {right:g}, {top:g}; "
            "write it in longitudes and latitudes, or with its true CRS"
        )
