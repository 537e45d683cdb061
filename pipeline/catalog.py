"""Many scenes from few words: paths, globs, folders, addresses, lists and tables become a stream of named scenes.

A row of a list or table can name a file of the table's own folder by a relative path, and anything else only by an
absolute path or an address that is written out. What is wrong with a row refuses that row and nothing else.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import shapely

from pipeline.band_file import BandFile
from pipeline.catalog_layers import MAGIC, open_layer
from pipeline.catalog_rows import Row, open_csv, read_list
from pipeline.catalog_rules import checked_id, locate
from pipeline.catalog_scene import describe_entry
from pipeline.catalog_spec import CatalogSpec
from pipeline.errors import SceneError, ScenemillError, SettingsError
from pipeline.location import resolve_location, tidy_name
from pipeline.lonlat import outlined, touches
from pipeline.scene import ReadingSpec

SUFFIXES = (".tif", ".tiff", ".gtiff")
"""Files of a folder that are taken for scenes; name others by a glob, since they need a driver in the settings."""
INDEX_SUFFIXES = (".txt", ".csv", *MAGIC)
"""Files that list scenes instead of being one."""


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One scene to be processed."""

    id: str
    """Unique in its catalog; names the scene's output folder."""
    location: str
    """Path or address."""
    files: tuple[BandFile, ...] = ()
    """The raster files of its bands, where the catalog tells them one by one; none: the location is the raster."""
    acquired: str | None = None
    """When it was taken, ISO 8601 in UTC, where the catalog says it."""
    source: str | None = None
    """Address of the STAC Item that it comes from."""
    refused: str | None = None
    """Why it cannot be processed, where the catalog is at fault; then the id may be a row, as `a.csv, line 3`."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A scene before it is chosen."""

    entry: CatalogEntry
    """The scene."""
    row: Row | None = None
    """The row that it comes from, None for a scene that is named by itself."""


def read_catalog(
    sources: Sequence[str | Path], spec: CatalogSpec | None = None, reading: ReadingSpec | None = None
) -> Iterator[CatalogEntry]:
    """Yield the scenes of sources one by one, each once: first those of `list_scenes`, then those of lists and tables.

    Lists are `.txt`, tables `.csv`, `.gpkg`, `.geojson`, `.parquet` and `.geoparquet`; they are read as far as
    scenes are asked for, and only after each has been found readable. A scene of theirs is called by its id, or by its
    file stem; the second of two equal ids is refused.

    Args:
        sources: files, folders, globs, addresses, lists and tables.
        spec: columns and selections.
        reading: how scenes are opened to see where they lie; used with `bbox` where no footprint says it.

    Raises:
        SettingsError: at once, when a source matches nothing, cannot be read, or lacks a column.
    """
    spec = spec or CatalogSpec()
    indexes = [str(source) for source in sources if _is_index(str(source))]
    plain = [source for source in sources if str(source) not in indexes]
    named = list_scenes(plain) if plain or not indexes else ()
    opened = [(Path(index).expanduser(), _open_index(index, spec)) for index in dict.fromkeys(indexes)]
    return islice(_selected(_candidates(named, opened), spec, reading or ReadingSpec()), spec.limit)


def list_scenes(sources: Sequence[str | Path]) -> tuple[CatalogEntry, ...]:
    """Expand files, globs, folders (not their subfolders) and addresses, in order, each scene once.

    A scene is called by its file stem; where stems collide, by folder and stem.

    Raises:
        SettingsError: a source matches nothing, or two scenes cannot be told apart.
    """
    places: dict[str, str] = {}
    for source in sources:
        for place in _expand(str(source)):
            places.setdefault(_gdal_path(place), place)
    locations = [*places.values()]
    if not locations:
        raise SettingsError("no scene given; name files, folders, globs, or s3:// and https:// addresses")
    stems = [resolve_location(location).stem for location in locations]
    counts = Counter(stem.lower() for stem in stems)
    ids = [
        stem if counts[stem.lower()] == 1 else tidy_name(f"{Path(location).parent.name}_{stem}")
        for stem, location in zip(stems, locations, strict=True)
    ]
    twice = [name for name, count in Counter(name.lower() for name in ids).items() if count > 1]
    if twice:
        same = [location for name, location in zip(ids, locations, strict=True) if name.lower() in twice]
        raise SettingsError(f"these scenes would share one output folder, run them apart: {', '.join(same)}")
    return tuple(CatalogEntry(id=name, location=location) for name, location in zip(ids, locations, strict=True))


def _is_index(source: str) -> bool:
    if "://" in source:
        return urlsplit(source).path.lower().endswith(INDEX_SUFFIXES)
    path = Path(source).expanduser()
    named = path.is_file() or not (glob.has_magic(source) or path.is_dir())
    return named and path.name.lower().endswith(INDEX_SUFFIXES)


def _open_index(source: str, spec: CatalogSpec) -> Iterator[Row]:
    index = Path(source).expanduser()
    if "://" in source:
        raise SettingsError(f"{source}: lists of scenes are read from local files only; fetch it first")
    try:
        index.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{source}: cannot be read: {error.strerror}; check the path") from error
    kind = index.suffix.lower()
    if kind == ".txt":
        return read_list(index)
    return open_csv(index, spec) if kind == ".csv" else open_layer(index, spec)


def _candidates(named: Sequence[CatalogEntry], indexes: Sequence[tuple[Path, Iterator[Row]]]) -> Iterator[_Candidate]:
    """Every scene once, and every row at fault."""
    yield from (_Candidate(entry=entry) for entry in named)
    places = {resolve_location(entry.location).gdal_path for entry in named}
    ids = {entry.id.lower() for entry in named}
    for index, rows in indexes:
        for row in rows:
            entry = _entry_of(row, index.parent, places, ids)
            if entry is not None:
                yield _Candidate(entry=entry, row=row)


def _entry_of(row: Row, folder: Path, places: set[str], ids: set[str]) -> CatalogEntry | None:
    """The scene of a row, refused where the row is at fault, None where it was listed before.

    Its GDAL path and its id are added to `places` and `ids`.
    """
    try:
        location = locate(row, folder)
        place = resolve_location(location)
        if place.gdal_path in places:
            return None
        name = checked_id(row.id or place.stem, ids)
    except SceneError as error:
        return CatalogEntry(id=row.place, location=_printable(row.path), refused=str(error))
    places.add(place.gdal_path)
    ids.add(name.lower())
    return CatalogEntry(id=name, location=location)


def _printable(text: str) -> str:
    """Text that does nothing to a terminal."""
    return text if text.isprintable() else repr(text)


def _selected(candidates: Iterator[_Candidate], spec: CatalogSpec, reading: ReadingSpec) -> Iterator[CatalogEntry]:
    """The scenes that touch the bounding box, and those that cannot be placed, with the reason."""
    for candidate in candidates:
        entry, row = candidate.entry, candidate.row
        if spec.bbox is None or entry.refused is not None:
            yield entry
            continue
        try:
            drawn = row.footprint if row is not None else None
            if touches(drawn if drawn is not None else _footprint(entry, reading), spec.bbox):
                yield entry
        except ScenemillError as error:
            yield replace(entry, refused=str(error))


def _footprint(entry: CatalogEntry, reading: ReadingSpec) -> shapely.Geometry:
    scene = describe_entry(entry, replace(reading, resolution_m="native"))
    return outlined(scene.grid)


def _gdal_path(place: str) -> str:
    try:
        return resolve_location(place).gdal_path
    except SceneError as error:
        raise SettingsError(str(error)) from error


def _expand(source: str) -> list[str]:
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
        what = "matches no file" if glob.has_magic(source) else "no such file or folder"
        raise SettingsError(f"{source}: {what}; check the path")
    return found
