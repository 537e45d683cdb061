"""Many scenes from few words: paths, globs, folders and addresses become a list of named scenes."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SceneError, SettingsError
from pipeline.location import resolve_location, tidy_name

SUFFIXES = (".tif", ".tiff", ".gtiff")
"""Files of a folder that are taken for scenes; name others by a glob, since they need a driver in the settings."""


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One scene to be processed."""

    id: str
    """Unique in its catalog; names the scene's output folder."""
    location: str
    """Path or address."""


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
