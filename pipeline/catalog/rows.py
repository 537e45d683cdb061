"""Rows of text lists and CSV files, one at a time: where a scene is said to lie, and what it is called."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import shapely

from pipeline.catalog.spec import CatalogSpec
from pipeline.errors import SceneError, SettingsError
from pipeline.scene import BandFile
from pipeline.storage import sanitize_name

PATH_COLUMNS = ("path", "location", "href")
"""Columns that are taken for paths when the settings name none."""
ID_COLUMN = "id"
"""The column that is taken for ids when the settings name none."""
DATE_COLUMNS = ("datetime", "date")
"""Columns that are taken for dates when the settings name none; the first that there is."""
DELIMITERS = ",;\t"
"""What may stand between the columns of a CSV file; the most frequent one of its first line does."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row of an index says, as it is written, or a STAC Item."""

    place: str
    """The file and the row in it, for messages."""
    path: str = ""
    """A path, relative to the index or absolute, or an address; empty when the row has none."""
    id: str = ""
    """Name of the scene; empty: it is named after its file."""
    footprint: shapely.Geometry | None = None
    """Where the scene lies, in longitudes and latitudes; None when the index does not say."""
    date: str = ""
    """When the scene was taken; empty when the index does not say."""
    clouds: float | None = None
    """Percent of the scene under clouds; NaN for a STAC Item that does not say, None for rows of other kinds."""
    files: tuple[BandFile, ...] = ()
    """The raster files of its bands, where they are told one by one; `path` is then the first of them."""
    source: str | None = None
    """Where the STAC Item lies that the row is made of."""
    error: str = ""
    """Why the row cannot be used; empty when it can."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of an index that count."""

    path: str
    """The one with paths or addresses."""
    id: str | None
    """The one with ids, None where scenes are named after their files."""
    date: str | None = None
    """The one that says when scenes were taken, None where there is none."""

    @property
    def names(self) -> list[str]:
        """Those that there are, each once."""
        return list(dict.fromkeys(name for name in (self.path, self.id, self.date) if name is not None))


def choose_columns(names: Sequence[str], spec: CatalogSpec, index: Path) -> Columns:
    """The columns that count, by the settings or by their usual names.

    Raises:
        SettingsError: a column that the settings name is missing, or none or several could hold the paths.
    """
    asked = {"path_column": spec.path_column, "id_column": spec.id_column, "date_column": spec.date_column}
    for key, wanted in asked.items():
        if wanted is not None and names.count(wanted) != 1:
            said = "more than one column" if wanted in names else "no column"
            raise SettingsError(
                f"{index}: {said} is called {wanted!r}, which catalog.{key} asks for; it has {', '.join(names)}"
            )
    found = [name for name in names if name.lower() in PATH_COLUMNS]
    if spec.path_column is None and len(found) != 1:
        said = f"{' and '.join(found)} could all hold the paths" if found else "no column is called path"
        raise SettingsError(
            f"{index}: {said}; say which one does with catalog.path_column, its columns are {', '.join(names)}"
        )
    return Columns(
        path=spec.path_column or found[0],
        id=spec.id_column or _only(names, ID_COLUMN),
        date=spec.date_column or next(filter(None, (_only(names, usual) for usual in DATE_COLUMNS)), None),
    )


def _only(names: Sequence[str], usual: str) -> str | None:
    """The one column of a usual name, None where none or several have it."""
    found = [name for name in names if name.lower() == usual]
    return found[0] if len(found) == 1 else None


def read_list(index: Path) -> Iterator[Row]:
    """A row for each line that is neither empty nor a comment (`#`)."""
    try:
        with _open(index) as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text and not text.startswith("#"):
                    yield Row(place=f"{index}, line {number}", path=text)
    except OSError as error:
        yield truncated_row(index, error)


def open_csv(index: Path, spec: CatalogSpec) -> Iterator[Row]:
    """The rows of a CSV file, whose first line is checked at once.

    Raises:
        SettingsError: it lacks a column.
    """
    with _open(index) as file:
        first = file.readline()
    delimiter = max(DELIMITERS, key=first.count)
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    return _csv_rows(index, names, choose_columns(names, spec, index), delimiter)


def truncated_row(index: Path | str, error: object) -> Row:
    """The last row of an index that ends in a fault: scenes may be missing, and this one says so."""
    return Row(place=str(index), error=f"cannot be read to its end ({error}); what follows is missing, mend the file")


def _csv_rows(index: Path, names: Sequence[str], columns: Columns, delimiter: str) -> Iterator[Row]:
    at = {name: names.index(name) for name in columns.names}
    try:
        with _open(index) as file:
            for place, cells in _records(index, file, delimiter):
                if isinstance(cells, csv.Error):
                    yield Row(place=place, error=f"no valid CSV: {cells}; correct the row")
                elif len(cells) != len(names):
                    yield Row(place=place, error=f"has {len(cells)} columns, the first line {len(names)}; correct it")
                else:
                    path, name, date = (
                        "" if column is None else cells[at[column]].strip()
                        for column in (columns.path, columns.id, columns.date)
                    )
                    yield Row(place=place, path=path, id=name, date=date)
    except OSError as error:
        yield truncated_row(index, error)


def _records(index: Path, file: TextIO, delimiter: str) -> Iterator[tuple[str, list[str] | csv.Error]]:
    """Place and cells of each record after the first line that is not empty, or why it is none."""
    reader = csv.reader(file, delimiter=delimiter)
    next(reader, None)
    while True:
        place = f"{index}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, error
        else:
            if cells:
                yield place, cells


def _open(index: Path) -> TextIO:
    """A text file as UTF-8; what is none becomes U+FFFD, which no path may hold, so that its row alone is refused."""
    return index.open(encoding="utf-8-sig", errors="replace", newline="")


RESERVED_SUFFIXES = (".json", ".gpkg", ".parquet")
"""How files that a run keeps beside the scenes' folders end; no scene's id may."""


def locate(row: Row, folder: Path, root: Path | None = None) -> str:
    """Where the scene of a row lies: an address, an absolute path, or a file in the folder of the index or below.

    Args:
        row: the row.
        folder: of the index; relative paths count from here.
        root: in its place, the folder that they must stay in.

    Raises:
        SceneError: the row names no place, or one outside by a relative path, also through a link.
    """
    if row.error:
        raise SceneError(row.error)
    if not row.path:
        raise SceneError("no path is there; fill it in, or delete the row")
    if "\N{REPLACEMENT CHARACTER}" in row.path or not row.path.isprintable():
        raise SceneError(f"{row.path!r} holds a line break or is no UTF-8; correct the row, perhaps a quote is missing")
    if "://" in row.path or Path(row.path).is_absolute():
        return row.path
    path = folder / row.path
    try:
        inside = path.resolve().is_relative_to((root or folder).expanduser().resolve())
    except (OSError, RuntimeError) as error:
        raise SceneError(f"{row.path}: leads nowhere: {error}; correct the path") from error
    if not inside:
        raise SceneError(
            f"{row.path}: leads out of {(root or folder).absolute()}, the folder of the list; "
            "write the absolute path out if it is meant, or allow a higher folder with catalog.root"
        )
    return str(path)


def check_id(name: str, taken: Collection[str]) -> str:
    """The id, which becomes the name of a folder.

    Args:
        name: the id.
        taken: the ids before it, in lower case.

    Raises:
        SceneError: no folder can have this name, or one has it.
    """
    if name != sanitize_name(name) or name.lower().endswith(RESERVED_SUFFIXES):
        raise SceneError(
            f"the id {name!r} cannot name a folder; use letters, digits, dash and underscore, and dots inside, "
            f"at most 200, not ending in {', '.join(RESERVED_SUFFIXES)}"
        )
    if name.lower() in taken:
        raise SceneError(f"the id {name!r} is taken by another scene; give each its own in a column called id")
    return name
