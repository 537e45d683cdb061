"""Polygon labels: find label files, read polygons in any CRS, and rasterize them onto any window of a scene's grid.

A target is uint8 `(classes, height, width)`: 1 where the pixel's centre lies in an object of the class, 0 where it
does not, `UNLABELLED` where the label is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.windows import Window

from pipeline.errors import LabelError
from pipeline.grid import RasterGrid, is_on_earth
from pipeline.scene import Scene
from pipeline.storage import exclusive_warning_filters
from pipeline.training.labels.class_map import (
    NO_CLASS,
    UNLABELLED_CLASS,
    Meanings,
    attribute_meanings,
    unknown_values_error,
    value_text,
)
from pipeline.training.labels.pairing import pair_all, stem_of
from pipeline.training.labels.vectors import polygons_only, read_areas

if TYPE_CHECKING:
    import geopandas

UNLABELLED = 255
"""Target of pixels that count neither in the loss nor in metrics; in mask rasters 255 and a nodata other than 0 do."""
VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".parquet", ".geoparquet", ".fgb", ".shp")
MASK_SUFFIXES = (".tif", ".tiff", ".gtiff", ".png", ".jpg", ".jpeg")


class Labels(Protocol):
    """Labels of a scene, window by window; safe to use from many threads."""

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The target `(classes, height, width)` of a window inside the grid."""

    def close(self) -> None:
        """Close all file handles; no thread may be reading."""


@dataclass(frozen=True, kw_only=True)
class PolygonTable:
    """Polygons of a label file, in its own CRS."""

    frame: geopandas.GeoDataFrame
    """Column `geometry`: valid, non-empty polygons and multipolygons; column `class_index`: the class from 0, or
    `UNLABELLED_CLASS`."""
    repaired: int
    """Geometries that were invalid and have been repaired."""
    dropped: int
    """Features without area: empty, points, lines, or empty after repair."""
    path: Path


class PolygonLabels:
    """Polygons rasterized by the pixel-centre rule; an unlabelled polygon overrides all others."""

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
        found = np.sort(self._tree.query(grid_outline(part)))
        for index in np.unique(self.class_index[found])[::-1]:
            inside = burn_shapes(self.polygons[found[self.class_index[found] == index]], part)
            if index == UNLABELLED_CLASS:
                target[:, inside] = UNLABELLED
            else:
                target[index] = inside
        return target

    def close(self) -> None:
        """Do nothing: no file is open."""


def burn_shapes(shapes: NDArray[np.object_], grid: RasterGrid) -> NDArray[np.bool_]:
    """Which pixels of a grid, `(height, width)`, have their centre in at least one polygon."""
    if not len(shapes):
        return np.zeros(grid.shape, bool)
    with exclusive_warning_filters():  # `rasterize` silences a warning of its own
        burnt = rasterize(shapes, out_shape=grid.shape, transform=grid.transform, dtype="uint8")
    return np.asarray(burnt, bool)


def find_labels(labels: str | Path | Sequence[str | Path], images: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The label files of each image.

    One file labels every image. In folders, files named like an image label that image; when no file is
    named like any image, all vector files together label every image.

    Args:
        labels: a vector file, a mask raster, or a folder of them; or several of these.
        images: locations of the images, or their stems.

    Raises:
        LabelError: there is no label file, or only some images have a label file of their name.
    """
    paths = [Path(p).expanduser() for p in ([labels] if isinstance(labels, str | Path) else labels)]
    place = ", ".join(map(str, paths))
    files = [file for path in paths for file in _label_files(path)]
    if len(paths) == 1 and paths[0].is_file():
        return dict.fromkeys(images, (paths[0],))
    named = pair_all(files, images, place)
    if named:
        return named
    vectors = tuple(p for p in files if p.suffix.lower() in VECTOR_SUFFIXES)
    if not vectors:
        raise LabelError(
            f"{place}: no label file is named like a scene ({', '.join(map(stem_of, images[:5]))}), and there is no "
            "vector file that could label all scenes"
        )
    return dict.fromkeys(images, vectors)


def _label_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in VECTOR_SUFFIXES + MASK_SUFFIXES)
    if not path.exists():
        raise LabelError(f"{path}: no such label file or folder; check --labels")
    return [path]


def read_polygons(
    path: Path, classes: Sequence[str], class_field: str | None = None, class_map: Mapping[str, str] | None = None
) -> PolygonTable:
    """Read and repair the polygons of a vector file.

    Args:
        path: GeoPackage, GeoJSON, GeoParquet, FlatGeobuf or Shapefile.
        classes: class names in order.
        class_field: attribute that holds the class; None when there is one class.
        class_map: attribute value -> class, `none` (the polygon is ignored) or `unlabelled`.

    Raises:
        LabelError: unreadable, without CRS, without a polygon among its features, without the attribute, with a
            value that has no meaning, or with a map of values but no attribute.
    """
    frame, repaired = read_areas(path)
    geometry = np.asarray(frame.geometry.array, dtype=object)
    if class_map and class_field is None:
        raise LabelError(
            f"{path}: class_map gives the meaning of values, but class_field names no attribute that holds them; set "
            f"class_field (the file has {', '.join(map(str, frame.columns))}), or leave class_map out, so that every "
            "polygon is of the only class"
        )
    frame["class_index"] = _class_index(frame, classes, class_field, attribute_meanings(classes, class_map), path)
    empty = shapely.is_missing(geometry) | shapely.is_empty(geometry)
    if len(frame) and empty.all():
        raise LabelError(
            f"{path}: holds no polygon: none of its {len(frame)} features has an area; draw outlines, or turn points "
            "and lines into areas, e.g. by a buffer"
        )
    usable = ~empty & (frame["class_index"] != NO_CLASS).to_numpy()
    return PolygonTable(frame=frame[usable], repaired=repaired, dropped=int(empty.sum()), path=path)


def open_polygon_labels(
    tables: Sequence[PolygonTable], scene: Scene, *, classes: int, allow_empty: bool = False
) -> PolygonLabels:
    """The polygons of several label files that touch a scene, in its CRS.

    With `allow_empty` no polygon needs to touch the scene, because `labelled_area` may hold no object.

    Raises:
        LabelError: no polygon touches the scene, or the scene is not georeferenced.
    """
    if not is_on_earth(scene.grid.crs):
        raise LabelError(
            f"{scene.location}: is not georeferenced, so polygons cannot be laid on it; give its CRS with reading.crs, "
            "georeference it with gdal_edit, or label it by a mask of its own size"
        )
    found = [polygons_touching(table.frame, scene.grid) for table in tables]
    polygons = np.concatenate([geometry for geometry, _ in found])
    class_index = np.concatenate(
        [np.asarray(t.frame["class_index"], np.intp)[rows] for t, (_, rows) in zip(tables, found, strict=True)]
    )
    if not len(polygons) and not allow_empty and any(len(table.frame) for table in tables):
        files = "; ".join(
            f"{t.path.name} covers {degrees_text(tuple(t.frame.total_bounds), t.frame.crs)}"
            for t in tables
            if len(t.frame)
        )
        raise LabelError(
            f"no polygon of the labels touches the scene {scene.location}, which covers "
            f"{degrees_text(scene.grid.bounds, scene.grid.crs.to_wkt())}, but {files}; check the CRS of both, leave "
            "the scene out, or give the labelled land with labelled_area if the scene contains no objects"
        )
    return PolygonLabels(polygons, class_index, scene.grid, classes=classes)


def polygons_touching(frame: geopandas.GeoDataFrame, grid: RasterGrid) -> tuple[NDArray[np.object_], NDArray[np.intp]]:
    """The polygons that touch a grid, in its CRS and valid there, and their rows in the frame."""
    rows = _candidates(frame, grid)
    geometry = np.asarray(frame.iloc[rows].to_crs(grid.crs.to_wkt()).geometry.array, dtype=object)
    # Coordinates are infinite where the scene's CRS is not defined.
    finite = np.isfinite(shapely.bounds(geometry)).all(axis=1)
    geometry, rows = geometry[finite], rows[finite]
    # A transformation can make a valid polygon cross itself.
    broken = ~shapely.is_valid(geometry)
    geometry[broken] = polygons_only(shapely.make_valid(geometry[broken]))
    near = shapely.intersects(grid_outline(grid), geometry)
    return geometry[near], rows[near]


def _candidates(frame: geopandas.GeoDataFrame, grid: RasterGrid) -> NDArray[np.intp]:
    """Rows that may touch a grid, found in the labels' own CRS so that only few are transformed."""
    from pyproj import Transformer

    to_labels = Transformer.from_crs(grid.crs.to_wkt(), frame.crs, always_xy=True)
    left, bottom, right, top = to_labels.transform_bounds(*grid.bounds)
    if not np.isfinite((left, bottom, right, top)).all() or left > right:  # outside the CRS, or over the antimeridian
        return np.arange(len(frame))
    return np.sort(np.asarray(frame.sindex.query(shapely.box(left, bottom, right, top)), np.intp))


def grid_outline(grid: RasterGrid) -> shapely.Polygon:
    """The grid's rectangle in CRS coordinates, also when rotated."""
    corners = ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))
    return shapely.Polygon([grid.transform @ corner for corner in corners])


def _class_index(
    frame: geopandas.GeoDataFrame, classes: Sequence[str], class_field: str | None, meanings: Meanings, path: Path
) -> NDArray[np.intp]:
    if class_field is None:
        if len(classes) > 1:
            raise LabelError(
                f"{path}: with {len(classes)} classes, class_field must name the attribute that holds the class"
            )
        return np.zeros(len(frame), np.intp)
    if class_field not in frame.columns:
        raise LabelError(f"{path}: has no attribute {class_field!r}; it has {', '.join(map(str, frame.columns))}")
    texts = [value_text(value) for value in frame[class_field]]
    unknown = set(texts) - set(meanings)
    if unknown:
        raise unknown_values_error(f"{path}: {class_field} has", unknown, meanings, classes)
    return np.array([meanings[text] for text in texts], np.intp)


def degrees_text(bounds: tuple[float, float, float, float], crs: object) -> str:
    """Bounds in any CRS as longitude and latitude ranges, for messages."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    west, south, east, north = to_degrees.transform_bounds(*bounds)
    return f"{west:.4f}..{east:.4f} E, {south:.4f}..{north:.4f} N"
