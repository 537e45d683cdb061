"""Catalogs of scenes: paths, globs, folders, addresses, lists, tables and STAC become a stream of named scenes.

A relative path in a list or table must stay in the table's folder; other files need an absolute path or an address.
An error in a row excludes that row only.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.catalog.entry import CatalogEntry
from pipeline.catalog.filters import Candidate, Excluded, SceneFilter
from pipeline.catalog.layers import LAYER_SUFFIXES, open_layer
from pipeline.catalog.listing import is_folder_or_glob, list_objects
from pipeline.catalog.rows import Row, check_id, locate, open_csv, read_list
from pipeline.catalog.spec import CatalogSpec
from pipeline.catalog.stac.geoparquet import column_names, is_item_table, read_item_table
from pipeline.catalog.stac.items import ItemRules
from pipeline.catalog.stac.walk import STAC_PREFIX, is_stac_source, open_stac
from pipeline.errors import SceneError, SettingsError
from pipeline.scene import ReadingSpec, parse_date
from pipeline.storage import HostRules, check_regular, check_utf8, resolve_location, sanitize_name
from pipeline.text import printable, without_secrets

SUFFIXES = (".tif", ".tiff", ".gtiff")
"""Suffixes of scenes in a folder; name other files by a glob, since they need a driver in the settings."""
DOCUMENT_SUFFIX = ".json"
"""Suffix of STAC documents; each document of a glob is read."""
INDEX_SUFFIXES = (".txt", ".csv", DOCUMENT_SUFFIX, *LAYER_SUFFIXES)
PARQUET_SUFFIXES = (".parquet", ".geoparquet")
"""Tables of paths, or of STAC Items."""


def read_catalog(
    sources: Sequence[str | Path],
    spec: CatalogSpec | None = None,
    reading: ReadingSpec | None = None,
    *,
    area: str | Path | None = None,
    on_excluded: Excluded = lambda entry, reason: None,
) -> Iterator[CatalogEntry]:
    """Yield the scenes of sources one by one, without duplicates: those of `list_scenes`, then of lists and tables.

    Lists are `.txt`, tables `.csv`, `.gpkg`, `.geojson`, `.parquet` and `.geoparquet`, STAC `.json`, tables of Items,
    and addresses after `stac+`. All of them are opened first and then read lazily. The id of a scene is that of its
    row, else its file stem; the second of two equal ids is refused.

    Args:
        sources: files, folders, globs, addresses, lists, tables and STAC.
        spec: columns, assets and filters.
        reading: how scenes are opened whose date or footprint is not in the catalog, and with which drivers.
        area: file of polygons; only scenes that touch them are yielded.
        on_excluded: called with each scene that is excluded, and the reason.

    Raises:
        SettingsError: at the call, when a source matches nothing, a file cannot be read, or a column is missing.
        TransientError: at the call, when disk, network or server failed.
    """
    now = datetime.now(UTC)
    scene_filter = SceneFilter(
        (spec or CatalogSpec()).at(now), reading or ReadingSpec(), area=area, on_excluded=on_excluded
    )
    spec, reading = scene_filter.spec, scene_filter.reading
    indexes = [str(source) for source in sources if _is_index(str(source))]
    others = [source for source in sources if str(source) not in indexes]
    hosts = HostRules(spec.hosts)
    named = [replace(entry, rules=hosts) for entry in (list_scenes(others) if others or not indexes else ())]
    rules = ItemRules(spec=spec, drivers=reading.drivers)

    # Indexes are opened now, so that a missing file or column fails before the first scene.
    opened = [
        (Path(index).expanduser().parent, _open_index(index, rules))
        for index in dict.fromkeys(index for source in indexes for index in _index_files(source))
    ]
    root = None if spec.root is None else Path(spec.root)
    return islice(scene_filter.apply(_candidates(named, opened, root, hosts)), spec.limit)


def list_scenes(sources: Sequence[str | Path]) -> tuple[CatalogEntry, ...]:
    """Expand files, globs, folders (not their subfolders) and addresses, in order, without duplicates.

    The id of a scene is its file stem, or folder and stem where stems collide.

    Raises:
        SettingsError: a source matches nothing, or two scenes have one id.
    """
    unique: dict[str, str] = {}
    for source in sources:
        for text in _expand(str(source)):
            unique.setdefault(_gdal_path(text), text)
    locations = [*unique.values()]
    if not locations:
        raise SettingsError("no scene given; name files, folders, globs, or s3:// and https:// addresses")

    # Some file systems ignore case, so ids must differ in lower case.
    stems = [resolve_location(location).stem for location in locations]
    counts = Counter(stem.lower() for stem in stems)
    ids = [
        stem if counts[stem.lower()] == 1 else sanitize_name(f"{Path(location).parent.name}_{stem}")
        for stem, location in zip(stems, locations, strict=True)
    ]
    twice = [name for name, count in Counter(name.lower() for name in ids).items() if count > 1]
    if twice:
        same = [location for name, location in zip(ids, locations, strict=True) if name.lower() in twice]
        raise SettingsError(f"these scenes would share one output folder, run them apart: {', '.join(same)}")
    return tuple(_entry(name, location) for name, location in zip(ids, locations, strict=True))


def _entry(name: str, location: str) -> CatalogEntry:
    try:
        check_utf8(location)
    except SceneError as error:
        return CatalogEntry(id=name, location=printable(location), refused=str(error))
    return CatalogEntry(id=name, location=location)


def _is_index(source: str) -> bool:
    if source.startswith(STAC_PREFIX):
        return True
    if "://" in source:
        return urlsplit(source).path.lower().endswith(INDEX_SUFFIXES)
    path = Path(source).expanduser()
    if path.is_dir():
        return False
    named = path.is_file() or not glob.has_magic(source)
    return path.name.lower().endswith(INDEX_SUFFIXES if named else DOCUMENT_SUFFIX)


def _index_files(source: str) -> list[str]:
    """The STAC documents of a glob, else the source itself."""
    is_glob = "://" not in source and glob.has_magic(source) and not Path(source).expanduser().is_file()
    return _expand(source) if is_glob or is_folder_or_glob(source) else [source]


def _open_index(source: str, rules: ItemRules) -> Iterator[Row]:
    if is_stac_source(source):
        return open_stac(source, rules)
    spec, index = rules.spec, Path(source).expanduser()
    if "://" in source:
        raise SettingsError(
            f"{source}: lists and tables of scenes are read from local files only; fetch it first. STAC is read from "
            f"addresses, without the suffix .json as stac+{source}"
        )

    # An early open gives one error message for all formats.
    try:
        check_regular(index)
        index.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    kind = index.suffix.lower()
    if kind == ".txt":
        return read_list(index)
    if kind == ".csv":
        return open_csv(index, spec)
    if kind in PARQUET_SUFFIXES and is_item_table(column_names(index), spec):
        return read_item_table(index, rules)
    return open_layer(index, spec)


def _candidates(
    named: Sequence[CatalogEntry],
    indexes: Sequence[tuple[Path, Iterator[Row]]],
    root: Path | None,
    rules: HostRules,
) -> Iterator[Candidate]:
    """Yield each scene once, and each row with an error; `rules` are those of addresses that the operator named."""
    yield from (Candidate(entry=entry) for entry in named)
    paths = {resolve_location(entry.location).gdal_path for entry in named}
    ids = {entry.id.lower() for entry in named}
    for folder, rows in indexes:
        for row in rows:
            entry = _entry_of(row, partial(locate, row, folder, root), paths, ids)
            if entry is not None:
                yield Candidate(entry=replace(entry, rules=row.rules or rules), row=row)


def _entry_of(row: Row, locate_row: Callable[[], str], paths: set[str], ids: set[str]) -> CatalogEntry | None:
    """The scene of a row, added to `paths` and `ids`; refused if the row has an error, None if it was listed before."""
    try:
        text = locate_row()
        location = resolve_location(text)
        # A scene of several files is identified by all of them.
        path = " ".join(resolve_location(file.location).gdal_path for file in row.files) or location.gdal_path
        if path in paths:
            return None
        name = check_id(row.id or location.stem, ids)
    except SceneError as error:
        shown = printable(without_secrets(row.path))
        return CatalogEntry(id=printable(row.location), location=shown, refused=str(error))
    paths.add(path)
    ids.add(name.lower())
    return CatalogEntry(id=name, location=text, files=row.files, acquired=parse_date(row.date), source=row.source)


def _gdal_path(text: str) -> str:
    try:
        return resolve_location(text).gdal_path
    except SceneError as error:
        raise SettingsError(str(error)) from error


def _expand(source: str) -> list[str]:
    if is_folder_or_glob(source):
        return list_objects(source, SUFFIXES)
    if "://" in source or source.startswith("/vsi"):
        return [source]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if not found:
            raise SettingsError(f"{source}: no scene in this folder; looked for {', '.join(SUFFIXES)}")
        return found
    if path.exists():
        return [str(path)]
    found = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not found:
        problem = "matches no file" if glob.has_magic(source) else "no such file or folder"
        raise SettingsError(f"{source}: {problem}; check the path")
    return found
