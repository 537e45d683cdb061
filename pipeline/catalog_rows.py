"""Rows of text lists and CSV files, one at a time: where a scene is said to lie, and what it is called."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import shapely

from pipeline.catalog_spec import CatalogSpec
from pipeline.errors import SettingsError

PATH_COLUMNS = ("path", "location", "href")
"""Columns that are taken for paths when the settings name none."""
ID_COLUMN = "id"
"""The column that is taken for ids when the settings name none."""
DELIMITERS = ",;\t"
"""What may stand between the columns of a CSV file; the most frequent one of its first line does."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row of an index says, as it is written."""

    place: str
    """The file and the row in it, for messages."""
    path: str = ""
    """A path, relative to the index or absolute, or an address; empty when the row has none."""
    id: str = ""
    """Name of the scene; empty: it is named after its file."""
    footprint: shapely.Geometry | None = None
    """Where the scene lies, in longitudes and latitudes; None when the index does not say."""
    fault: str = ""
    """Why the row cannot be used; empty when it can."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of an index that count."""

    path: str
    """The one with paths or addresses."""
    id: str | None
    """The one with ids, None where scenes are named after their files."""

    @property
    def names(self) -> list[str]:
        """Both, or the one that there is."""
        return [self.path] if self.id is None else [self.path, self.id]


def choose_columns(names: Sequence[str], spec: CatalogSpec, index: Path) -> Columns:
    """The columns that count, by the settings or by their usual names.

    Raises:
        SettingsError: a column that the settings name is missing, or none or several could hold the paths.
    """
    for wanted, key in ((spec.path_column, "path_column"), (spec.id_column, "id_column")):
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
    ids = [name for name in names if name.lower() == ID_COLUMN]
    return Columns(path=spec.path_column or found[0], id=spec.id_column or (ids[0] if len(ids) == 1 else None))


def read_list(index: Path) -> Iterator[Row]:
    """A row for each line that is neither empty nor a comment (`#`)."""
    try:
        with _open(index) as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text and not text.startswith("#"):
                    yield Row(place=f"{index}, line {number}", path=text)
    except OSError as error:
        yield cut_short(index, error)


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


def cut_short(index: Path, error: BaseException) -> Row:
    """The last row of an index that ends in a fault: scenes may be missing, and this one says so."""
    return Row(place=str(index), fault=f"cannot be read to its end ({error}); what follows is missing, mend the file")


def _csv_rows(index: Path, names: Sequence[str], columns: Columns, delimiter: str) -> Iterator[Row]:
    path_at, id_at = names.index(columns.path), None if columns.id is None else names.index(columns.id)
    try:
        with _open(index) as file:
            for place, cells in _records(index, file, delimiter):
                if isinstance(cells, csv.Error):
                    yield Row(place=place, fault=f"no valid CSV: {cells}; correct the row")
                elif len(cells) != len(names):
                    yield Row(place=place, fault=f"has {len(cells)} columns, the first line {len(names)}; correct it")
                else:
                    yield Row(
                        place=place, path=cells[path_at].strip(), id="" if id_at is None else cells[id_at].strip()
                    )
    except OSError as error:
        yield cut_short(index, error)


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
