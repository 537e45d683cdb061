"""Vector files, checked before GDAL opens them: no CRS by link in GeoJSON, no computed tables in GeoPackages."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import SettingsError
from pipeline.storage.signatures import check_signature

CHUNK_BYTES = 2**20
MAX_STRING_BYTES = 2**24
"""Longest text in a GeoJSON file; also of a number or of blanks between two texts."""
MAX_KEYS = 4096
"""Largest number of different keys in a GeoJSON file; GDAL needs a time that grows with their square."""
MAX_CRS_BYTES = 4096
"""Longest `crs` member."""
MAX_SCHEMA_STEPS = 1000
"""Calls of SQLite's progress handler, each after `STEP_OPERATIONS`, while a schema is read."""
STEP_OPERATIONS = 10_000

_TOKEN = re.compile(
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:(\\?\Z)|"(\s*+(?::|(\Z)))?)|([^"\s\[\]{}:,0-9A-Za-z+.\-])', re.DOTALL
)
"""1: a text; 2: it goes on after the end; 3: the colon after a key; 4: it may follow after the end; 5: not JSON."""
_CRS_NAME = re.compile(
    r"urn:ogc:def:crs:[\w.:]+|urn:x-ogc:def:crs:[\w.:]+|[A-Za-z]+:[\w.]+|CRS84"
    r"|https?://www\.opengis\.net/def/crs/[\w./]+"
)
_RTREE = re.compile(r"\bUSING\s+[\"'`\[]?rtree(_i32)?\b", re.IGNORECASE)
_COMPUTED = (2, 3)
"""Values of `hidden` in `PRAGMA table_xinfo` for virtual and stored generated columns."""


def check_vector(path: Path) -> None:
    """Refuse a vector file of which GDAL would fetch or compute something, or whose content contradicts its suffix.

    Raises:
        SettingsError: it is refused, with the reason.
        OSError: it cannot be read, or is a pipe, socket or device.
        ValueError: it is no JSON, or no GeoPackage.
    """
    check_signature(path)
    suffix = path.suffix.lower()
    if suffix in (".geojson", ".json"):
        _check_geojson(path)
    elif suffix == ".gpkg":
        _check_geopackage(path)


def _check_geojson(path: Path) -> None:
    """Look at the value of every key `crs`, which GDAL takes in any case, and also inside geometries."""
    keys: set[bytes] = set()
    for key, value in _members(path):
        keys.add(key)
        if len(keys) > MAX_KEYS:
            raise SettingsError(f"{path}: has over {MAX_KEYS} different keys; keep only the attributes that are needed")
        if _decoded(key).lower() == "crs" and not _is_plain_crs(value):
            raise SettingsError(
                f"{path}: its member crs is no plain name of a CRS (perhaps a link), and is not followed; remove it, "
                "since GeoJSON is in longitudes and latitudes, or name the CRS, e.g. urn:ogc:def:crs:EPSG::32633"
            )


def _members(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield each key as it is written, and the first `MAX_CRS_BYTES` after its colon; memory is bounded."""
    text = b""
    with path.open("rb") as file:
        while True:
            chunk = file.read(max(CHUNK_BYTES, len(text)))
            text = (text + chunk).removeprefix(b"\xef\xbb\xbf")
            start = 0
            for token in _TOKEN.finditer(text):
                unfinished = token[2] is not None or token[4] is not None or token.end() + MAX_CRS_BYTES > len(text)
                if chunk and unfinished and token[5] is None:
                    break
                if token[5] is not None or token[2] is not None:
                    raise ValueError(f"not JSON at {token[0][:20]!r}")
                start = token.end()
                if token[3] is not None:
                    yield token[1], text[start : start + MAX_CRS_BYTES]
            if not chunk:
                return
            # Numbers and brackets after the last text are done with.
            text = text[start:] if b'"' in text[start:] else b""
            if len(text) > MAX_STRING_BYTES:
                raise SettingsError(f"{path}: has a text of over {MAX_STRING_BYTES} bytes; write it again without it")


def _decoded(key: bytes) -> str:
    try:
        return str(json.loads(b'"' + key + b'"'))
    except ValueError:
        return ""


def _is_plain_crs(value: bytes) -> bool:
    """Whether a member `crs` that begins so names a CRS, or is no object and therefore ignored by GDAL.

    Raises:
        ValueError: the file ends in it.
    """
    text = value.lstrip()
    if not text.startswith(b"{"):
        return bool(text)
    try:
        found, _ = json.JSONDecoder(object_pairs_hook=_lower_keys).raw_decode(text.decode("utf-8", "replace"))
    except RecursionError:
        return False
    except ValueError:
        if len(value) < MAX_CRS_BYTES:
            raise
        return False
    properties = found.get("properties")
    name = properties.get("name") if isinstance(properties, dict) else None
    return found.get("type") == "name" and isinstance(name, str) and _CRS_NAME.fullmatch(name) is not None


def _lower_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object with keys in lower case, as GDAL compares them; empty if two are equal."""
    found = {key.lower(): value for key, value in pairs}
    return found if len(found) == len(pairs) else {}


def _check_geopackage(path: Path) -> None:
    """Refuse views and generated columns: SQLite computes them while they are read, without a bound."""
    # A journal of changes that are not in the file yet must be read as well; without one, nothing may be written.
    options = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    steps = iter(range(MAX_SCHEMA_STEPS))
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{options}", uri=True)) as database:
            # Anything but None interrupts it.
            database.set_progress_handler(lambda: None if next(steps, None) is not None else 1, STEP_OPERATIONS)
            database.execute("PRAGMA trusted_schema = OFF")
            tables = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
            for kind, name, sql in tables:
                if kind == "view" or (kind == "table" and _is_virtual(sql)):
                    raise SettingsError(
                        f"{path}: {name[:100]!r} is a view or virtual table, which would be computed while it is read; "
                        f"write the layer that you need as a table, e.g. ogr2ogr plain.gpkg {path.name} LAYER"
                    )
                if kind == "table" and any(row[6] in _COMPUTED for row in _columns(database, name)):
                    raise SettingsError(
                        f"{path}: the table {name[:100]!r} has generated columns, which would be computed while it is "
                        "read; write it with plain columns"
                    )
    except sqlite3.Error as error:
        raise ValueError(f"no readable GeoPackage ({error})") from error


def _is_virtual(sql: str | None) -> bool:
    """Whether a table is virtual, and no spatial index."""
    return sql is not None and sql.lstrip()[:14].upper() == "CREATE VIRTUAL" and _RTREE.search(sql) is None


def _columns(database: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    return database.execute("SELECT * FROM pragma_table_xinfo(?)", (table,)).fetchall()
