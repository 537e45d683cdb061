"""Rows of text lists and CSV files, read one at a time, with the path, id and date of a scene."""

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
from pipeline.storage import DOCUMENT_SUFFIXES, MAX_NAME_BYTES, HostRules, sanitize_name

PATH_COLUMNS = ("path", "location", "href")
"""Default names of the column of paths."""
ID_COLUMN = "id"
DATE_COLUMNS = ("datetime", "date")
"""Default names of the column of dates; the first one that exists."""
DELIMITERS = ",;\t"
"""Delimiters of CSV files; the most frequent one in the header line is used."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of an index, as written, or a STAC Item."""

    location: str
    """File and row, for messages."""
    path: str = ""
    """A path, relative to the index or absolute, or an address; empty if the row has none."""
    id: str = ""
    """Id of the scene; empty: its file stem."""
    footprint: shapely.Geometry | None = None
    """Footprint in longitudes and latitudes; None if unknown."""
    date: str = ""
    """Acquisition date; empty if unknown."""
    clouds: float | None = None
    """Cloud cover in percent; NaN for a STAC Item without that property, None for rows of other kinds."""
    files: tuple[BandFile, ...] = ()
    """The raster files of its bands, if the Item lists several; `path` is then the first of them."""
    source: str | None = None
    rules: HostRules | None = None
    """The hosts that requests for its files may reach; None: as for addresses that the operator named."""
    error: str = ""
    """Why the row cannot be used; empty if it can."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of an index that are read."""

    path: str
    id: str | None
    """Ids; None: scenes are named after their files."""
    date: str | None = None
    """Acquisition dates, None if there are none."""

    @property
    def names(self) -> list[str]:
        """The existing ones, without duplicates."""
        return list(dict.fromkeys(name for name in (self.path, self.id, self.date) if name is not None))


def choose_columns(names: Sequence[str], spec: CatalogSpec, index: Path) -> Columns:
    """The columns by the settings, else by their default names; SettingsError if one is missing or ambiguous."""
    settings = {"path_column": spec.path_column, "id_column": spec.id_column, "date_column": spec.date_column}
    for key, column in settings.items():
        if column is not None and names.count(column) != 1:
            found = "more than one column" if column in names else "no column"
            raise SettingsError(
                f"{index}: {found} is called {column!r}, which catalog.{key} names; it has {', '.join(names)}"
            )
    usual = [name for name in names if name.lower() in PATH_COLUMNS]
    if spec.path_column is None and len(usual) != 1:
        problem = f"{' and '.join(usual)} could all hold the paths" if usual else "no column is called path"
        raise SettingsError(f"{index}: {problem}; name it with catalog.path_column, its columns are {', '.join(names)}")
    return Columns(
        path=spec.path_column or usual[0],
        id=spec.id_column or _only(names, ID_COLUMN),
        date=spec.date_column or next(filter(None, (_only(names, column) for column in DATE_COLUMNS)), None),
    )


def _only(names: Sequence[str], column: str) -> str | None:
    """The column of this name in any case, None if there is none or several."""
    found = [name for name in names if name.lower() == column]
    return found[0] if len(found) == 1 else None


def read_list(index: Path) -> Iterator[Row]:
    """Yield a row for each line that is neither empty nor a comment (`#`)."""
    try:
        with _open(index) as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text and not text.startswith("#"):
                    yield Row(location=f"{index}, line {number}", path=text)
    except OSError as error:
        yield truncated_row(index, error)


def open_csv(index: Path, spec: CatalogSpec) -> Iterator[Row]:
    """The rows of a CSV file; its header is checked before the first row is requested."""
    with _open(index) as file:
        first = file.readline()
    delimiter = max(DELIMITERS, key=first.count)
    try:
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error as error:
        raise SettingsError(f"{index}: its first line does not name columns: {error}; correct it") from error
    return _csv_rows(index, names, choose_columns(names, spec, index), delimiter)


def truncated_row(index: Path | str, error: object) -> Row:
    """The last row of an index that cannot be read to its end; it fails, since further scenes may be missing."""
    return Row(
        location=str(index), error=f"cannot be read to its end ({error}); further scenes are missing, repair the file"
    )


def _csv_rows(index: Path, names: Sequence[str], columns: Columns, delimiter: str) -> Iterator[Row]:
    positions = {name: names.index(name) for name in columns.names}
    try:
        with _open(index) as file:
            for location, cells in _records(index, file, delimiter):
                if isinstance(cells, csv.Error):
                    yield Row(location=location, error=f"invalid CSV: {cells}; correct the row")
                elif len(cells) != len(names):
                    yield Row(
                        location=location, error=f"has {len(cells)} columns, the first line {len(names)}; correct it"
                    )
                else:
                    path, name, date = (
                        "" if column is None else cells[positions[column]].strip()
                        for column in (columns.path, columns.id, columns.date)
                    )
                    yield Row(location=location, path=path, id=name, date=date)
    except OSError as error:
        yield truncated_row(index, error)


def _records(index: Path, file: TextIO, delimiter: str) -> Iterator[tuple[str, list[str] | csv.Error]]:
    """Yield location and cells, or the error, of each record after the header; empty lines are skipped."""
    reader = csv.reader(file, delimiter=delimiter)
    next(reader, None)
    while True:
        # A quoted cell may span lines: name the first line of the record.
        location = f"{index}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield location, error
        else:
            if cells:
                yield location, cells


def _open(index: Path) -> TextIO:
    """Open a text file as UTF-8; invalid bytes become U+FFFD, which no path may hold, so that only their row fails."""
    return index.open(encoding="utf-8-sig", errors="replace", newline="")


def locate(row: Row, folder: Path, root: Path | None = None) -> str:
    """The path or address of a row's scene: an address, an absolute path, or a file inside the index's folder.

    A relative path starts at `folder` and must stay in `root` (by default `folder`), also through links.
    """
    if row.error:
        raise SceneError(row.error)
    if not row.path:
        raise SceneError("the row has no path; fill it in, or delete the row")

    # Invalid UTF-8 was replaced at opening; an unclosed quote includes line breaks in a cell.
    if "\N{REPLACEMENT CHARACTER}" in row.path or not row.path.isprintable():
        raise SceneError(
            f"{row.path!r} holds a line break or is not UTF-8; correct the row, perhaps a quote is missing"
        )
    if "://" in row.path or Path(row.path).is_absolute():
        return row.path

    # Links are resolved, so that a list cannot reach files outside its root.
    path = folder / row.path
    try:
        inside = path.resolve().is_relative_to((root or folder).expanduser().resolve())
    except (OSError, RuntimeError) as error:
        raise SceneError(f"{row.path}: cannot be resolved: {error}; correct the path") from error
    if not inside:
        raise SceneError(
            f"{row.path}: leads out of {(root or folder).absolute()}, the folder of the list; "
            "write the absolute path if it is intended, or allow a higher folder with catalog.root"
        )
    return str(path)


def check_id(name: str, taken: Collection[str]) -> str:
    """Return the id; SceneError if it is not a safe folder name, or is in `taken`, in lower case."""
    if name != sanitize_name(name):
        raise SceneError(
            f"the id {name!r} cannot name a folder; use letters, digits, dash and underscore, and dots inside, "
            f"at most {MAX_NAME_BYTES} bytes in UTF-8, not ending in {', '.join(DOCUMENT_SUFFIXES)}"
        )
    if name.lower() in taken:
        raise SceneError(f"the id {name!r} is taken by another scene; give each its own in a column called id")
    return name
