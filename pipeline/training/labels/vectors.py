"""Vector files as valid polygons: read any supported format, repair geometries, and drop points and lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import LabelError, SettingsError
from pipeline.storage import check_vector, import_pyogrio

if TYPE_CHECKING:
    import geopandas


def read_areas(path: Path) -> tuple[geopandas.GeoDataFrame, int]:
    """The features of a vector file as valid polygons and multipolygons, and how many were invalid.

    Features without area (points, lines, geometries that are empty after repair) become None.
    """
    frame = _read_frame(path)
    if frame.crs is None:
        raise LabelError(
            f"{path}: has no CRS, so its polygons cannot be located; assign the correct one, "
            "e.g. ogr2ogr -a_srs EPSG:4326"
        )
    geometry = np.asarray(frame.geometry.array, dtype=object)
    broken = ~shapely.is_valid(geometry) & ~shapely.is_missing(geometry)
    geometry[broken] = shapely.make_valid(geometry[broken])
    series = frame.geometry.__class__(polygons_only(geometry), crs=frame.crs, index=frame.index)
    return frame.set_geometry(series), int(broken.sum())


def polygons_only(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Polygons and multipolygons unchanged, the polygons of collections, None for all others."""
    kind = shapely.get_type_id(geometry)
    result: NDArray[np.object_] = geometry.copy()
    result[~np.isin(kind, (3, 6))] = None
    for at in np.flatnonzero(kind == 7):
        parts = shapely.get_parts(shapely.get_parts(geometry[at]))
        areas = parts[shapely.get_type_id(parts) == 3]
        result[at] = shapely.multipolygons(areas) if len(areas) else None
    return result


def _read_frame(path: Path) -> geopandas.GeoDataFrame:
    import geopandas

    try:
        check_vector(path)
        if path.suffix.lower() in (".parquet", ".geoparquet"):
            return geopandas.read_parquet(path)
        frame: geopandas.GeoDataFrame = import_pyogrio().read_dataframe(path, layer=_only_layer(path))
        return frame
    except SettingsError as error:
        raise LabelError(str(error)) from error
    except ImportError as error:
        raise LabelError(f"{path}: reading GeoParquet needs pyarrow: pip install pyarrow, or use GeoPackage") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise LabelError(f"{path}: cannot be read as vector data: {error}") from error


def _only_layer(path: Path) -> str | None:
    """The only layer of a GeoPackage with geometries; style and attribute tables are ignored."""
    if path.suffix.lower() != ".gpkg":
        return None
    names = [str(name) for name, kind in import_pyogrio().list_layers(path) if kind is not None]
    if len(names) > 1:
        raise LabelError(
            f"{path}: has the layers {', '.join(names)}; keep the one that holds the labels, "
            f"e.g. ogr2ogr labels.gpkg {path.name} {names[0]}"
        )
    return names[0] if names else None
