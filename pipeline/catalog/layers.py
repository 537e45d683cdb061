"""Rows of GeoPackage, GeoJSON and GeoParquet files, batch by batch, with the footprints that they draw."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.catalog.rows import Columns, Row, choose_columns, truncated_row
from pipeline.catalog.spec import CatalogSpec
from pipeline.errors import SceneError, SettingsError
from pipeline.grid import to_geographic
from pipeline.storage import check_signature

if TYPE_CHECKING:
    import pyarrow

LAYERS = (".gpkg", ".geojson", ".parquet", ".geoparquet")
"""Files that are read as layers."""
ROWS_AT_ONCE = 1024
"""Rows in memory at a time."""


def open_layer(index: Path, spec: CatalogSpec) -> Iterator[Row]:
    """The rows of a file of footprints, whose columns are checked at once; footprints only where a bbox needs them.

    Raises:
        SettingsError: the file is not what its suffix says, or lacks a column.
    """
    check_signature(index)
    wants_footprints = spec.bbox is not None
    try:
        if index.suffix.lower() in (".parquet", ".geoparquet"):
            return _open_parquet(index, spec, wants_footprints)
        layer, columns = _choose_layer(index, spec)
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"{index}: cannot be read as an index of scenes: {error}; check the file") from error
    return rows_until_error(index, _layer_rows(index, layer, columns, wants_footprints))


def rows_until_error(index: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows up to a fault of the file, which is the last one."""
    try:
        yield from rows
    except (OSError, RuntimeError, ValueError) as error:
        yield truncated_row(index, error)


def _choose_layer(index: Path, spec: CatalogSpec) -> tuple[str, Columns]:
    """The one layer with paths; styles and other tables may lie beside it."""
    import pyogrio

    fields = {
        str(name): [*map(str, pyogrio.read_info(index, name)["fields"])] for name, _ in pyogrio.list_layers(index)
    }
    found: dict[str, Columns] = {}
    fault = SettingsError(f"{index}: has no layer; an index needs one with a column of paths")
    for layer, names in fields.items():
        try:
            found[layer] = choose_columns(names, spec, index)
        except SettingsError as error:
            fault = error
    if len(found) > 1:
        raise SettingsError(f"{index}: the layers {', '.join(found)} all have a column of paths; keep one in the file")
    if not found:
        raise fault
    return next(iter(found.items()))


def _layer_rows(index: Path, layer: str, columns: Columns, wants_footprints: bool) -> Iterator[Row]:
    import pyogrio

    given: dict[str, Any] = {"layer": layer, "columns": columns.names, "read_geometry": wants_footprints}
    if index.suffix.lower() == ".geojson":
        given["DATE_AS_STRING"] = "YES"  # GDAL loses the zones of a column that has several
    with pyogrio.open_arrow(index, batch_size=ROWS_AT_ONCE, use_pyarrow=True, **given) as (meta, batches):
        geometry = (meta["geometry_name"] or "wkb_geometry") if wants_footprints else None
        yield from _rows(index, batches, columns, geometry, meta["crs"])


def _open_parquet(index: Path, spec: CatalogSpec, wants_footprints: bool) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(index) as file:
        schema = file.schema_arrow
    columns = choose_columns(schema.names, spec, index)
    geometry, crs = _parquet_geometry(schema) if wants_footprints else (None, None)
    return rows_until_error(index, _parquet_rows(index, columns, geometry, crs))


def _parquet_geometry(schema: pyarrow.Schema) -> tuple[str | None, str | None]:
    """Name and CRS of the column of footprints; GeoParquet without a CRS means longitudes and latitudes."""
    geo = json.loads((schema.metadata or {}).get(b"geo", b"{}"))
    name = geo.get("primary_column")
    about = geo.get("columns", {}).get(name, {})
    if about.get("encoding") != "WKB":
        return None, None
    crs = about.get("crs", "OGC:CRS84")
    return name, crs if crs is None or isinstance(crs, str) else json.dumps(crs)


def _parquet_rows(index: Path, columns: Columns, geometry: str | None, crs: str | None) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    wanted = list(dict.fromkeys([*columns.names, *([geometry] if geometry else [])]))
    with ParquetFile(index) as file:
        yield from _rows(index, file.iter_batches(ROWS_AT_ONCE, columns=wanted), columns, geometry, crs)


def _rows(
    index: Path, batches: Iterable[pyarrow.RecordBatch], columns: Columns, geometry: str | None, crs: str | None
) -> Iterator[Row]:
    number = 0
    for batch in batches:
        texts = [_texts(batch, column) for column in (columns.path, columns.id, columns.date)]
        drawn = _footprints(batch, geometry, crs)
        for path, name, date, footprint in zip(*texts, drawn, strict=True):
            number += 1
            yield Row(place=f"{index}, row {number}", path=path, id=name, date=date, footprint=footprint)


def _texts(batch: pyarrow.RecordBatch, column: str | None) -> list[str]:
    """Each value as text: nothing for null or where there is no column, U+FFFD for what is no UTF-8."""
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
    drawn = shapely.from_wkb(batch.column(geometry).to_numpy(zero_copy_only=False), on_invalid="ignore")
    return [usable_footprint(each, crs) for each in drawn]


def usable_footprint(drawn: shapely.Geometry | None, crs: str) -> shapely.Geometry | None:
    """Where a scene lies, None where nothing of use is drawn."""
    if drawn is None or drawn.is_empty or not np.isfinite(shapely.get_coordinates(drawn)).all():
        return None
    try:
        return to_geographic(drawn, crs)
    except (SceneError, shapely.errors.ShapelyError):
        return None
