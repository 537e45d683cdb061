"""Existing vector files: which of them a new file may replace, and replacing one layer of a GeoPackage.

Other layers, styles and tables of a file are another person's work: they are kept, or the file is not touched.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.polygons.export import polygon_schema
from pipeline.polygons.writer import GEOMETRY, LAYER, STYLES, append_layer, check_closed
from pipeline.storage import atomic_path, import_pyogrio, is_file

LAYER_NAME = re.compile(r"[^\W\d][\w\- ]{0,62}")
"""Letters, digits, dash, space and underscore: what every program takes as the name of a layer."""
RESERVED = ("gpkg_", "rtree_", "sqlite_", STYLES)
"""Beginnings of the names of tables that a GeoPackage has for itself."""


def check_replaceable(path: Path) -> None:
    """Check that a path is free, or that its file holds nothing but polygons that Scenemill wrote.

    Raises:
        SettingsError: it holds anything else, or cannot be read.
    """
    if not path.exists() and not path.is_symlink():
        return
    other = _other_content(path)
    if other:
        layer = "write one layer of it with --layer NAME, or " if path.suffix.lower() == ".gpkg" else ""
        raise SettingsError(
            f"{path}: exists and holds {other}, which would be lost; name another file, {layer}replace the whole file "
            "with --overwrite"
        )


@contextmanager
def layer_of(path: Path, name: str) -> Iterator[Path]:
    """Yield a path for a GeoPackage of polygons, which then becomes one layer of the file at `path`, atomically.

    The layer replaces one of the same name, whose styles stay; all other layers, styles and tables stay as they are.
    Without a file, one is created.

    Raises:
        SettingsError: no GeoPackage, or the name cannot be that of a layer.
        TransientError: the disk fails, or another program is writing the file.
    """
    if path.suffix.lower() != ".gpkg":
        raise SettingsError(f"{path}: only a GeoPackage (.gpkg) has layers; leave --layer out, or name another file")
    if not LAYER_NAME.fullmatch(name) or name.lower().startswith(RESERVED):
        raise SettingsError(
            f"--layer {name!r}: a layer is named with at most 63 letters, digits, dashes, spaces and underscores, "
            f"beginning with a letter, and not like {', '.join(RESERVED)}"
        )
    if path.exists() and not is_file(path):
        raise SettingsError(f"{path}: is no regular file; name a GeoPackage")
    if path.exists():
        _check_geopackage(path)
    if not path.parent.is_dir():
        raise SettingsError(f"{path}: there is no folder {path.parent}; create it or name another")
    check_closed(path)
    with atomic_path(path, ending=path.suffix) as partial:
        new = partial.with_name(f"{partial.name}-layer.gpkg")
        yield new
        if path.exists():
            shutil.copyfile(path, partial)
        append_layer(new, partial, name)


def _other_content(path: Path) -> str:
    """What a file holds besides polygons of Scenemill, in words; empty: nothing."""
    if not is_file(path):
        return "no regular file"
    columns = {field.name for field in polygon_schema()} - {GEOMETRY}
    try:
        if path.suffix.lower() == ".gpkg":
            if tables := _tables(path) - {LAYER, STYLES}:
                return f"also {', '.join(sorted(tables)[:5])}"
            names = {*import_pyogrio().read_info(path, layer=LAYER)["fields"]}
        elif path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            names = {*pq.read_schema(path).names}
        else:
            names = {*import_pyogrio().read_info(path)["fields"]}
    except (OSError, RuntimeError, ValueError, KeyError, sqlite3.Error) as error:
        return f"what cannot be read as polygons ({' '.join(str(error).split())})"
    return "" if columns <= names else "other columns than polygons of Scenemill"


def _tables(path: Path) -> set[str]:
    """The tables and views of a SQLite file besides those that a GeoPackage has for itself, and layers with styles."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
        if "gpkg_contents" not in names:
            raise sqlite3.DatabaseError("another kind of SQLite file")
        if STYLES in names:
            names |= {f"styles of {name}" for (name,) in database.execute(f"SELECT f_table_name FROM {STYLES}")}
    return {name for name in names if not name.startswith(RESERVED[:-1]) and name != f"styles of {LAYER}"}


def _check_geopackage(path: Path) -> None:
    try:
        _tables(path)
    except sqlite3.Error as error:
        raise SettingsError(
            f"{path}: is no GeoPackage: {error}; name another file, or replace it with --overwrite"
        ) from error
