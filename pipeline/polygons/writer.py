"""Vector file writer: Arrow batches of polygons to GeoPackage, FlatGeobuf or GeoParquet, atomically.

Batches flow through an Arrow stream into the file, so memory holds one batch. The file is written
next to its target, flushed to the disk and renamed: a file at the target is complete. The same
polygons give the same bytes. Heavy packages are imported only when a file is written.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from rasterio.crs import CRS

from pipeline.errors import SettingsError, TransientError
from pipeline.polygons.style import layer_style
from pipeline.storage import atomic_path, import_pyogrio, remove_stale_partials

if TYPE_CHECKING:
    import pyarrow as pa

LAYER = "polygons"
"""Name of the layer."""
GEOMETRY = "geom"
"""Name of the geometry column."""
FIXED_TIMESTAMP = "2000-01-01T00:00:00.000Z"
"""The time of writing stored in files: constant, so that equal polygons give equal bytes."""

BATCH_ROWS = 16_384
"""Polygons that are copied at once."""
DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".parquet": "Parquet"}
"""File name suffix -> GDAL driver."""


def write_layer(
    path: str | Path, rows: Iterable[pa.RecordBatch], schema: pa.Schema, *, crs: CRS, classes: Mapping[int, str]
) -> int:
    """Write the layer `polygons`; no rows make a valid file. In QGIS a GeoPackage opens styled by class.

    Args:
        path: ends in .gpkg, .fgb or .parquet; an existing file is replaced.
        rows: batches of a column `geom`, WKB of multipolygons, and others; consumed lazily.
        schema: theirs.
        crs: of the coordinates.
        classes: class value -> name, in the order of the legend.

    Returns:
        Number of polygons.

    Raises:
        SettingsError: the ending is none of these, or there is no such folder.
        TransientError: the disk is full or refuses, or another program is writing the file.
    """
    path = Path(path)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise SettingsError(f"{path}: polygons are written as {', '.join(DRIVERS)}; {path.suffix!r} is none of them")
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; create it or name another")
    check_closed(path)
    remove_stale_partials(path)
    with atomic_path(path, ending=path.suffix) as partial:
        stream = _Stream(rows, schema)
        if driver == "Parquet":
            _write_parquet(partial, stream, crs)
        else:
            _write_with_gdal(partial, stream, crs, driver)
        if driver == "GPKG":
            _finish_geopackage(partial, stream.count, layer_style(classes))
    return stream.count


def check_closed(path: Path) -> None:
    """Check that no other program holds unsaved changes of a GeoPackage, which would be applied to its replacement.

    Raises:
        TransientError: there are some.
    """
    for suffix in ("-wal", "-journal"):
        changes = path.with_name(path.name + suffix)
        if changes.exists() and changes.stat().st_size:
            raise TransientError(
                f"{path}: another program, such as QGIS, has it open with changes in {changes.name}; save and close it "
                "there, and run again"
            )


def append_layer(source: Path, target: Path, name: str) -> None:
    """Copy the layer of a GeoPackage of polygons into another file under a name, with its style unless it has one.

    Args:
        source: written by `write_layer`.
        target: a GeoPackage, or absent.
        name: of the layer; one of the same name is replaced.

    Raises:
        TransientError: the disk is full or refuses.
    """
    pyogrio = import_pyogrio()
    crs = pyogrio.read_info(source, layer=LAYER)["crs"]
    with pyogrio.open_arrow(source, layer=LAYER, use_pyarrow=True, batch_size=BATCH_ROWS) as (_, reader):
        stream = _Stream(reader, reader.schema)
        _write_with_gdal(target, stream, CRS.from_user_input(crs), "GPKG", name)
    with closing(sqlite3.connect(source)) as database:
        ((qml,),) = database.execute(f"SELECT styleQML FROM {STYLES}")
    _finish_geopackage(target, stream.count, qml, name)


class _Stream:
    """Arrow record batches; counts rows and keeps the Python error, which a stream through C loses."""

    def __init__(self, rows: Iterable[pa.RecordBatch], schema: pa.Schema):
        self._rows = rows
        self.schema = schema
        self.count = 0
        self.error: BaseException | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._rows:
                self.count += batch.num_rows
                yield batch
        except BaseException as error:
            self.error = error
            raise


def _write_with_gdal(path: Path, stream: _Stream, crs: CRS, driver: str, layer: str = LAYER) -> None:
    """Stream into a layer of a GeoPackage, or into a FlatGeobuf."""
    import pyarrow as pa

    options: dict[str, object] = {}
    if driver == "GPKG":
        # GDAL 3.6, of Debian 12 and QGIS 3.22, warns of version 1.4.
        options["dataset_options"] = {"VERSION": "1.3"}
        options["layer_options"] = {"GEOMETRY_NAME": GEOMETRY, "SPATIAL_INDEX": "YES"}
    reader = pa.RecordBatchReader.from_batches(stream.schema, stream.batches())
    with _CONSTANT_DATE:
        try:
            import_pyogrio().write_arrow(
                reader,
                path,
                layer=layer,
                driver=driver,
                geometry_name=GEOMETRY,
                geometry_type="MultiPolygon",
                crs=_wkt(crs),
                **options,
            )
        except Exception as error:
            if stream.error is not None:
                raise stream.error from None
            raise TransientError(f"{path}: writing the polygons failed: {error}; is the disk full?") from error


def _write_parquet(path: Path, stream: _Stream, crs: CRS) -> None:
    """Stream into GeoParquet 1.1."""
    import pyarrow.parquet as pq

    schema = stream.schema.with_metadata({"geo": json.dumps(_geoparquet_header(crs))})
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in stream.batches():
                writer.write_batch(batch)
    except OSError as error:
        if stream.error is not None:
            raise
        raise TransientError(f"{path}: writing the polygons failed: {error}; is the disk full?") from error


def _geoparquet_header(crs: CRS) -> dict[str, object]:
    from pyproj import CRS as ProjCRS

    column = {
        "encoding": "WKB",
        "geometry_types": ["MultiPolygon"],
        "crs": ProjCRS.from_user_input(_wkt(crs)).to_json_dict(),
        "orientation": "counterclockwise",
        "edges": "planar",
    }
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _wkt(crs: CRS) -> str:
    """The CRS as WKT of 2019, which keeps facts that older versions drop."""
    wkt: str = crs.to_wkt(version="WKT2_2019")
    return wkt


class _ConstantDate:
    """While any thread is inside, GDAL writes a constant date; the option is global, so threads share it."""

    KEY = "OGR_CURRENT_DATE"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._previous: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            pyogrio = import_pyogrio()
            if not self._inside:
                self._previous = pyogrio.get_gdal_config_option(self.KEY)
                pyogrio.set_gdal_config_options({self.KEY: FIXED_TIMESTAMP})
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                import_pyogrio().set_gdal_config_options({self.KEY: self._previous})


_CONSTANT_DATE = _ConstantDate()

STYLES = "layer_styles"
"""The table in which QGIS keeps the styles of a GeoPackage."""
STYLE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {STYLES} (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
  f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
  useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), update_time DATETIME
)
"""


def _finish_geopackage(path: Path, count: int, qml: str, layer: str = LAYER) -> None:
    """Check the rows and the spatial index that GDAL wrote, and add the style, unless the layer has one.

    GDAL builds the spatial index on closing, where a full disk goes unreported. QGIS applies the style on
    opening, and ignores it when the geometry column is not the layer's.
    """
    try:
        with closing(sqlite3.connect(path)) as database, database:
            for table in (layer, f"rtree_{layer}_{GEOMETRY}"):
                ((found,),) = database.execute(f'SELECT count(*) FROM "{table}"')
                if found != count:
                    raise TransientError(f"{path}: {table} holds {found} of {count} polygons; is the disk full?")
            database.execute(STYLE_TABLE)
            database.execute(
                f"INSERT INTO {STYLES} SELECT (SELECT 1 + coalesce(max(id), 0) FROM {STYLES}), '', '', ?, ?, "
                "'classes', ?, '', 1, 'by class', '', NULL, ? "
                f"WHERE NOT EXISTS (SELECT 1 FROM {STYLES} WHERE f_table_name = ?)",
                (layer, GEOMETRY, qml, FIXED_TIMESTAMP, layer),
            )
            # As QGIS does; tables that are not registered would be listed as layers all the same.
            database.execute(
                "INSERT OR IGNORE INTO gpkg_contents "
                "(table_name, data_type, identifier, description, last_change, srs_id) "
                f"VALUES ('{STYLES}', 'attributes', '{STYLES}', '', ?, 0)",
                (FIXED_TIMESTAMP,),
            )
    except sqlite3.Error as error:
        raise TransientError(f"{path}: the GeoPackage could not be finished: {error}; is the disk full?") from error
