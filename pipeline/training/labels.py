"""Labels of a scene, burnt onto any window of its grid: how they are found, and polygons of any CRS.

A target is uint8 `(classes, height, width)`: 1 where the pixel's centre lies in an object of the class,
0 where it does not, `UNLABELLED` where nobody looked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from pipeline.errors import LabelError
from pipeline.grid import RasterGrid
from pipeline.scene import Scene

if TYPE_CHECKING:
    import geopandas

UNLABELLED = 255
"""Target of pixels that count neither in the loss nor in metrics; in mask rasters 255 and a nodata other than 0 do."""
_BURNING = threading.Lock()
"""`rasterize` silences a warning of its own with `warnings.catch_warnings`, which threads must not interleave."""
VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".parquet", ".geoparquet", ".fgb", ".shp")
MASK_SUFFIXES = (".tif", ".tiff")


class Labels(Protocol):
    """What is known about a scene, window by window; safe to use from many threads."""

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The target `(classes, height, width)` of a window inside the grid."""
        ...

    def touches(self, window: Window) -> bool:
        """Whether some object may lie in the window."""
        ...

    def close(self) -> None:
        """Close what is open; no thread may be reading."""
        ...


@dataclass(frozen=True, kw_only=True)
class PolygonTable:
    """Polygons of a label file, in its own CRS."""

    frame: geopandas.GeoDataFrame
    """Column `geometry`: valid, non-empty polygons and multipolygons; column `class_index`: int, from 0."""
    repaired: int
    """Geometries that were invalid and have been repaired."""
    dropped: int
    """Features without area: empty, points, lines, or nothing left after repair."""
    path: Path
    """The file."""


class PolygonLabels:
    """Polygons burnt by the pixel-centre rule."""

    def __init__(self, polygons: NDArray[np.object_], class_index: NDArray[np.intp], grid: RasterGrid, *, classes: int):
        self.polygons = polygons
        self.class_index = class_index
        self.grid = grid
        self.classes = classes
        self._tree = shapely.STRtree(polygons)

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window; equals the same part of the target of any larger window."""
        part = self.grid.part(window)
        target = np.zeros((self.classes, *part.shape), np.uint8)
        found = np.sort(self._tree.query(outline(part)))
        for index in np.unique(self.class_index[found]):
            shapes = self.polygons[found[self.class_index[found] == index]]
            with _BURNING:
                target[index] = rasterize(shapes, out_shape=part.shape, transform=part.transform, dtype="uint8")
        return target

    def touches(self, window: Window) -> bool:
        """Whether some polygon intersects the window."""
        return bool(len(self._tree.query(outline(self.grid.part(window)), predicate="intersects")))

    def close(self) -> None:
        """Nothing is open."""


def find_labels(labels: str | Path, scenes: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The label files of each scene, by stem.

    A file labels every scene. In a folder, files named like a scene label that scene; when no file is
    named like any scene, all vector files together label every scene.

    Args:
        labels: a vector file, a mask raster, or a folder of them.
        scenes: stems of the scenes.

    Raises:
        LabelError: nothing is there, or some scenes have a label file of their name and others have none.
    """
    labels = Path(labels)
    if labels.is_file():
        return dict.fromkeys(scenes, (labels,))
    if not labels.is_dir():
        raise LabelError(f"{labels}: no such label file or folder; check --labels")
    files = sorted(p for p in labels.iterdir() if p.suffix.lower() in VECTOR_SUFFIXES + MASK_SUFFIXES)
    named: dict[str, tuple[Path, ...]] = {stem: tuple(p for p in files if p.stem == stem) for stem in scenes}
    if not any(named.values()):
        vectors = tuple(p for p in files if p.suffix.lower() in VECTOR_SUFFIXES)
        if not vectors:
            raise LabelError(
                f"{labels}: no label file is named like a scene ({', '.join(scenes[:5])}), and there is no vector "
                "file that could label all scenes"
            )
        return dict.fromkeys(scenes, vectors)
    for stem, found in named.items():
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise LabelError(
                f"{labels}: the scene {stem!r} needs one label file of its name, but there is {names}; "
                "add or remove files, or leave the scene out"
            )
    return named


def read_polygons(path: Path, classes: Sequence[str], class_field: str | None = None) -> PolygonTable:
    """Read and repair the polygons of a vector file.

    Args:
        path: GeoPackage, GeoJSON, GeoParquet, FlatGeobuf or Shapefile.
        classes: class names in order.
        class_field: attribute that holds the class name; None when there is one class.

    Raises:
        LabelError: unreadable, without CRS, without the attribute, or with a class that is not wanted.
    """
    frame = _read_frame(path)
    if frame.crs is None:
        raise LabelError(
            f"{path}: has no CRS, so its polygons have no place on the ground; assign the true one, "
            "e.g. ogr2ogr -a_srs EPSG:4326"
        )
    geometry = np.asarray(frame.geometry.array, dtype=object)
    broken = ~shapely.is_valid(geometry) & ~shapely.is_missing(geometry)
    geometry[broken] = shapely.make_valid(geometry[broken])
    geometry = _areas_only(geometry)
    frame = frame.set_geometry(frame.geometry.__class__(geometry, crs=frame.crs, index=frame.index))
    frame["class_index"] = _class_index(frame, classes, class_field, path)
    kept = ~(shapely.is_missing(geometry) | shapely.is_empty(geometry))
    return PolygonTable(frame=frame[kept], repaired=int(broken.sum()), dropped=int((~kept).sum()), path=path)


def open_polygon_labels(tables: Sequence[PolygonTable], scene: Scene, *, classes: int) -> PolygonLabels:
    """The polygons of some files that touch a scene, in its CRS.

    Raises:
        LabelError: when none touches it.
    """
    parts, indices = [], []
    area = outline(scene.grid)
    for table in tables:
        frame = table.frame.iloc[_candidates(table.frame, scene.grid)].to_crs(scene.grid.crs.to_wkt())
        geometry = np.asarray(frame.geometry.array, dtype=object)
        finite = np.isfinite(shapely.bounds(geometry)).all(axis=1)
        geometry, class_index = geometry[finite], np.asarray(frame["class_index"], np.intp)[finite]
        broken = ~shapely.is_valid(geometry)
        geometry[broken] = _areas_only(shapely.make_valid(geometry[broken]))
        near = shapely.intersects(area, geometry)
        parts.append(geometry[near])
        indices.append(class_index[near])
    polygons, class_index = np.concatenate(parts), np.concatenate(indices)
    if not len(polygons):
        raise LabelError(_no_touch(tables, scene))
    return PolygonLabels(polygons, class_index, scene.grid, classes=classes)


def _candidates(frame: geopandas.GeoDataFrame, grid: RasterGrid) -> NDArray[np.intp]:
    """Rows that may touch a grid, found in the labels' own CRS so that few need to be transformed."""
    from pyproj import Transformer

    to_labels = Transformer.from_crs(grid.crs.to_wkt(), frame.crs, always_xy=True)
    left, bottom, right, top = to_labels.transform_bounds(*grid.bounds)
    if not np.isfinite((left, bottom, right, top)).all() or left > right:  # outside the CRS, or over the antimeridian
        return np.arange(len(frame))
    return np.sort(np.asarray(frame.sindex.query(shapely.box(left, bottom, right, top)), np.intp))


def outline(grid: RasterGrid) -> shapely.Polygon:
    """The grid's rectangle in CRS coordinates, also when rotated."""
    corners = ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))
    return shapely.Polygon([grid.transform * corner for corner in corners])


def _read_frame(path: Path) -> geopandas.GeoDataFrame:
    import geopandas

    try:
        read = geopandas.read_parquet if path.suffix.lower() in (".parquet", ".geoparquet") else geopandas.read_file
        return read(path)
    except ImportError as error:
        raise LabelError(f"{path}: reading GeoParquet needs pyarrow: pip install pyarrow, or use GeoPackage") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise LabelError(f"{path}: cannot be read as vector data: {error}") from error


def _areas_only(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Polygons and multipolygons as they are, the polygons of collections, None for everything else."""
    kind = shapely.get_type_id(geometry)
    result: NDArray[np.object_] = geometry.copy()
    result[~np.isin(kind, (3, 6))] = None
    for at in np.flatnonzero(kind == 7):
        parts = shapely.get_parts(shapely.get_parts(geometry[at]))
        areas = parts[shapely.get_type_id(parts) == 3]
        result[at] = shapely.multipolygons(areas) if len(areas) else None
    return result


def _class_index(
    frame: geopandas.GeoDataFrame, classes: Sequence[str], class_field: str | None, path: Path
) -> NDArray[np.intp]:
    if class_field is None:
        if len(classes) > 1:
            raise LabelError(
                f"{path}: with {len(classes)} classes, class_field must name the attribute that tells them"
            )
        return np.zeros(len(frame), np.intp)
    if class_field not in frame.columns:
        raise LabelError(f"{path}: has no attribute {class_field!r}; it has {', '.join(map(str, frame.columns))}")
    names = frame[class_field].astype(str)
    strange = sorted(set(names) - set(classes))
    if strange:
        raise LabelError(
            f"{path}: {class_field} has the values {strange[:5]}, which are not among classes {list(classes)}; "
            "add them to classes or take them out of the file"
        )
    return np.array([classes.index(name) for name in names], np.intp)


def _no_touch(tables: Sequence[PolygonTable], scene: Scene) -> str:
    from pyproj import Transformer

    def text(bounds: tuple[float, float, float, float], crs: object) -> str:
        to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
        west, south, east, north = to_degrees.transform_bounds(*bounds)
        return f"{west:.4f}..{east:.4f} E, {south:.4f}..{north:.4f} N"

    files = "; ".join(
        f"{t.path.name} covers {text(tuple(t.frame.total_bounds), t.frame.crs)}" for t in tables if len(t.frame)
    )
    return (
        f"no polygon of the labels touches the scene {scene.location}, which covers "
        f"{text(scene.grid.bounds, scene.grid.crs.to_wkt())}: {files or 'the label files hold no polygon'}"
    )
