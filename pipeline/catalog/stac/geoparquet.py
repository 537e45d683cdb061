"""stac-geoparquet tables, whose rows are STAC Items, read in batches and only the columns that are used."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import shapely

from pipeline.catalog.layers import parse_wkb, rows_until_error
from pipeline.catalog.rows import PATH_COLUMNS, Row
from pipeline.catalog.spec import CatalogSpec
from pipeline.catalog.stac.items import CLOUDS, MALFORMED, ItemRules, item_row, malformed_row
from pipeline.catalog.stac.links import document_location
from pipeline.errors import SettingsError
from pipeline.storage import HostRules, check_signature

COLUMNS = ("id", "stac_version", "geometry", "bbox", "assets", "links")
"""Columns that are fields of an Item."""
PROPERTIES = ("datetime", "start_datetime", "end_datetime", CLOUDS, "nodata", "gsd")
"""Columns that are properties of an Item, and are used."""
BATCH_ROWS = 128
"""Rows in memory at a time; an Item may have a hundred assets."""


def is_item_table(names: Collection[str], spec: CatalogSpec) -> bool:
    """Whether a table with these columns holds Items, not paths."""
    has_paths = spec.path_column is not None or any(name.lower() in PATH_COLUMNS for name in names)
    return not has_paths and {"id", "assets"} <= set(names)


def column_names(table: Path) -> list[str]:
    """The columns of a Parquet file; SettingsError if it is not one."""
    from pyarrow.parquet import ParquetFile

    check_signature(table)
    try:
        with ParquetFile(table) as file:
            return list(file.schema_arrow.names)
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"{table}: cannot be read as an index of scenes: {error}; check the file") from error


def read_item_table(table: Path, rules: ItemRules) -> Iterator[Row]:
    """Yield a row for each Item."""
    return rows_until_error(table, _rows(table, rules))


def _rows(table: Path, rules: ItemRules) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    document = document_location(str(table), rules.spec.root, HostRules(rules.spec.hosts))
    number = 0
    with ParquetFile(table) as file:
        columns = [name for name in (*COLUMNS, *PROPERTIES) if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for record in batch.to_pylist():
                number += 1
                label = f"{table}, row {number}"
                try:
                    content = _item(record)
                except MALFORMED as error:
                    yield malformed_row(label, error)
                else:
                    yield item_row(content, document, rules, label=label, itself=False)


def _item(record: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of an Item; null fields are left out."""
    plain = _plain(record)
    return {
        "type": "Feature",
        "stac_version": plain.get("stac_version") or "1.0.0",
        "stac_extensions": [],
        "id": plain.get("id"),
        "geometry": _geometry(record.get("geometry")),
        "bbox": _box(plain.get("bbox")),
        "assets": _mapping(plain.get("assets")),
        "links": plain.get("links") or [],
        "properties": {"datetime": None} | {name: plain[name] for name in PROPERTIES if name in plain},
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it, without null fields: a struct has every field of its column."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return value


def _mapping(assets: Any) -> Any:
    """Assets by key, from a struct, the pairs of a map, or JSON."""
    if isinstance(assets, str):
        return json.loads(assets)
    return dict(assets) if isinstance(assets, list) else assets or {}


def _geometry(wkb: object) -> Any:
    shape = parse_wkb(wkb) if isinstance(wkb, bytes) else None
    return None if shape is None or shape.is_empty else json.loads(shapely.to_geojson(shape))


def _box(bbox: Any) -> Any:
    """A box as a list, from a struct of `xmin, ymin, ...` or a list."""
    if not isinstance(bbox, dict):
        return bbox
    order = [name for name in ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax") if name in bbox]
    return [bbox[name] for name in order]
