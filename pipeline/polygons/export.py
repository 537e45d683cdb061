"""Polygon table: the columns of a scene's polygons, one row for each.

`writer` writes rows to a GeoPackage, FlatGeobuf or GeoParquet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from pipeline.polygons.shaping import Polygons
from pipeline.polygons.writer import GEOMETRY, write_layer

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(kw_only=True)
class PolygonTotals:
    """Count and areas of the written polygons."""

    count: int = 0
    """Polygons."""
    area_m2: dict[str, float] = field(default_factory=dict)
    """True area of the polygons of each class; 0 for a class without polygons."""

    def add(self, polygons: Polygons, classes: Mapping[int, str]) -> None:
        """Count a batch."""
        self.count += len(polygons)
        for value, name in classes.items():
            area_m2 = polygons.area_m2[polygons.class_value == value]
            self.area_m2[name] = self.area_m2.get(name, 0.0) + float(area_m2.sum())


def write_polygons(
    path: str | Path,
    polygons: Iterable[Polygons],
    *,
    crs: CRS,
    scene_id: str,
    model_id: str,
    classes: Mapping[int, str],
) -> PolygonTotals:
    """Write the layer `polygons`: multipolygons with class, sizes, probabilities, scene and model.

    No polygons make a valid file with an empty layer. In QGIS a GeoPackage opens styled by class.

    Args:
        path: ends in .gpkg, .fgb or .parquet; an existing file is replaced.
        polygons: batches, consumed lazily; their errors are raised here.
        crs: of the coordinates.
        scene_id: of the scene, a column.
        model_id: of the model, a column.
        classes: class value -> name, in the order of the legend.

    Returns:
        Number of polygons and area of each class.

    Raises:
        SettingsError: the ending is none of these, or there is no such folder.
        TransientError: the disk is full or refuses.
    """
    totals = PolygonTotals()
    totals.area_m2.update(dict.fromkeys(classes.values(), 0.0))
    rows = _rows(polygons, totals, {"scene": scene_id, "model": model_id}, classes)
    write_layer(path, rows, polygon_schema(), crs=crs, classes=classes)
    return totals


def polygon_schema() -> pa.Schema:
    """The columns of a scene's polygons."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(GEOMETRY, pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"}),
            pa.field("class", pa.string()),
            pa.field("class_value", pa.int16()),
            pa.field("area_m2", pa.float64()),
            pa.field("perimeter_m", pa.float64()),
            pa.field("mean_probability", pa.float64()),
            pa.field("max_probability", pa.float64()),
            pa.field("pixel_count", pa.int64()),
            pa.field("scene", pa.string()),
            pa.field("model", pa.string()),
        ]
    )


def to_wkb(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Polygons and multipolygons as WKB of multipolygons."""
    written: NDArray[np.object_] = shapely.to_wkb(_as_multipolygons(geometry), flavor="iso")
    return written


def _rows(
    batches: Iterable[Polygons], totals: PolygonTotals, ids: Mapping[str, str], classes: Mapping[int, str]
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    schema = polygon_schema()
    for polygons in batches:
        totals.add(polygons, classes)
        yield pa.record_batch(_columns(polygons, ids, classes), schema=schema)


def _columns(polygons: Polygons, ids: Mapping[str, str], classes: Mapping[int, str]) -> dict[str, object]:
    n = len(polygons)
    return {
        GEOMETRY: to_wkb(polygons.geometry),
        "class": [classes[value] for value in polygons.class_value.tolist()],
        "class_value": polygons.class_value.astype(np.int16),
        "area_m2": polygons.area_m2,
        "perimeter_m": polygons.perimeter_m,
        "mean_probability": polygons.mean_probability,
        "max_probability": polygons.max_probability,
        "pixel_count": polygons.pixel_count,
        **{name: [value] * n for name, value in ids.items()},
    }


def _as_multipolygons(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    result = np.array(geometry, dtype=object)
    single = np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON)
    if len(single):
        result[single] = shapely.multipolygons(geometry[single], indices=np.arange(len(single)))
    return result
