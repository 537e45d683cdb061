"""Rows of GeoPackage, GeoJSON and GeoParquet files with their footprints, read batch by batch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.catalog.rows import Columns, Row, choose_columns, truncated_row
from pipeline.catalog.spec import CatalogSpec
from pipeline.errors import SceneError, SettingsError
from pipeline.grid import to_geographic
from pipeline.storage import check_vector, import_pyogrio
from pipeline.text import read_json

if TYPE_CHECKING:
    import pyarrow

LAYER_SUFFIXES = (".gpkg", ".geojson", ".parquet", ".geoparquet")
MAX_COLLECTIONS = 32
"""Maximum geometry collections in a footprint."""
_COLLECTION = re.compile(
    rb"\x01(\x07\0\0[\0\x20\x40\x60\x80\xa0\xc0\xe0]|\xef\x03\0\0|\xd7\x07\0\0|\xbf\x0b\0\0)"
    rb"|\0([\0\x20\x40\x60\x80\xa0\xc0\xe0]\0\0\x07|\0\0\x03\xef|\0\0\x07\xd7|\0\0\x0b\xbf)"
)
"""Byte order and type of a geometry collection in WKB: of ISO in 2 to 4 dimensions, or with the flags of EWKB."""
BATCH_ROWS = 1024
"""Rows in memory at a time."""


def open_layer(index: Path, spec: CatalogSpec) -> Iterator[Row]:
    """The rows of a file of footprints; columns are checked before the first row, footprints read only for a bbox."""
    with_footprints = spec.bbox is not None
    try:
        check_vector(index)
        if index.suffix.lower() in (".parquet", ".geoparquet"):
            return _open_parquet(index, spec, with_footprints)
        layer, columns = _choose_layer(index, spec)
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"{index}: cannot be read as an index of scenes: {error}; check the file") from error
    return rows_until_error(index, _layer_rows(index, layer, columns, with_footprints))


def rows_until_error(index: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows; an error of the file becomes the last row."""
    try:
        yield from rows
    except (OSError, RuntimeError, ValueError, RecursionError) as error:
        yield truncated_row(index, error)


def _choose_layer(index: Path, spec: CatalogSpec) -> tuple[str, Columns]:
    """The one layer with a column of paths; other layers may hold styles and other tables."""
    pyogrio = import_pyogrio()
    fields = {
        str(name): [*map(str, pyogrio.read_info(index, name)["fields"])] for name, _ in pyogrio.list_layers(index)
    }
    found: dict[str, Columns] = {}
    problem = SettingsError(f"{index}: has no layer; an index needs one with a column of paths")
    for layer, names in fields.items():
        try:
            found[layer] = choose_columns(names, spec, index)
        except SettingsError as error:
            problem = error
    if len(found) > 1:
        raise SettingsError(f"{index}: the layers {', '.join(found)} all have a column of paths; keep one in the file")
    if not found:
        raise problem
    return next(iter(found.items()))


def _layer_rows(index: Path, layer: str, columns: Columns, with_footprints: bool) -> Iterator[Row]:
    options: dict[str, Any] = {"layer": layer, "columns": columns.names, "read_geometry": with_footprints}
    if index.suffix.lower() == ".geojson":
        options["DATE_AS_STRING"] = "YES"  # GDAL drops the time zones of a column that has several.
    opened = import_pyogrio().open_arrow(index, batch_size=BATCH_ROWS, use_pyarrow=True, **options)
    with opened as (meta, batches):
        geometry = (meta["geometry_name"] or "wkb_geometry") if with_footprints else None
        yield from _rows(index, batches, columns, geometry, meta["crs"])


def _open_parquet(index: Path, spec: CatalogSpec, with_footprints: bool) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(index) as file:
        schema = file.schema_arrow
    columns = choose_columns(schema.names, spec, index)
    geometry, crs = _parquet_geometry(schema) if with_footprints else (None, None)
    if geometry is not None and geometry not in schema.names:
        raise ValueError(f"its metadata name a geometry column {geometry[:100]!r}, which it lacks")
    return rows_until_error(index, _parquet_rows(index, columns, geometry, crs))


def _parquet_geometry(schema: pyarrow.Schema) -> tuple[str | None, str | None]:
    """Name and CRS of the geometry column; the default CRS of GeoParquet is longitude and latitude."""
    geo = read_json((schema.metadata or {}).get(b"geo", b"{}"))
    name, columns = (geo.get("primary_column"), geo.get("columns")) if isinstance(geo, dict) else (None, None)
    column = columns.get(name) if isinstance(name, str) and isinstance(columns, dict) else None
    if not isinstance(name, str) or not isinstance(column, dict) or column.get("encoding") != "WKB":
        return None, None
    crs = column.get("crs", "OGC:CRS84")
    return name, crs if crs is None or isinstance(crs, str) else json.dumps(crs)


def _parquet_rows(index: Path, columns: Columns, geometry: str | None, crs: str | None) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    names = list(dict.fromkeys([*columns.names, *([geometry] if geometry else [])]))
    with ParquetFile(index) as file:
        yield from _rows(index, file.iter_batches(BATCH_ROWS, columns=names), columns, geometry, crs)


def _rows(
    index: Path, batches: Iterable[pyarrow.RecordBatch], columns: Columns, geometry: str | None, crs: str | None
) -> Iterator[Row]:
    number = 0
    for batch in batches:
        texts = [_texts(batch, column) for column in (columns.path, columns.id, columns.date)]
        footprints = _footprints(batch, geometry, crs)
        for path, name, date, footprint in zip(*texts, footprints, strict=True):
            number += 1
            yield Row(location=f"{index}, row {number}", path=path, id=name, date=date, footprint=footprint)


def _texts(batch: pyarrow.RecordBatch, column: str | None) -> list[str]:
    """Each value as text: empty for null or a missing column, U+FFFD for a value that is not UTF-8."""
    if column is None:
        return [""] * batch.num_rows
    texts = []
    for value in batch.column(column):
        try:
            plain = value.as_py()
        except UnicodeDecodeError:
            plain = "\N{REPLACEMENT CHARACTER}"
        texts.append("" if plain is None else str(plain).strip())
    return texts


def _footprints(batch: pyarrow.RecordBatch, geometry: str | None, crs: str | None) -> Sequence[shapely.Geometry | None]:
    if geometry is None or crs is None:
        return [None] * batch.num_rows
    values = batch.column(geometry).to_numpy(zero_copy_only=False)
    return [usable_footprint(parse_wkb(wkb), crs) for wkb in values]


def parse_wkb(wkb: object) -> shapely.Geometry | None:
    """A geometry in WKB; None for invalid WKB and for deeply nested collections, which GEOS takes for ever to walk."""
    if not isinstance(wkb, bytes) or any(islice(_COLLECTION.finditer(wkb), MAX_COLLECTIONS, None)):
        return None
    return shapely.from_wkb(wkb, on_invalid="ignore")


def usable_footprint(shape: shapely.Geometry | None, crs: str) -> shapely.Geometry | None:
    """A footprint in longitudes and latitudes, None for a geometry that is empty, not finite or not transformable."""
    if shape is None or shape.is_empty or not np.isfinite(shapely.get_coordinates(shape)).all():
        return None
    try:
        return to_geographic(shape, crs)
    except (SceneError, shapely.errors.ShapelyError):
        return None
