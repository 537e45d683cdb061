"""Image lists of a training run: expand files, folders, globs and addresses, and open scenes and small chips."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.catalog import SUFFIXES, CatalogEntry, list_scenes
from pipeline.errors import SettingsError
from pipeline.scene import ReadingSpec, Scene, SceneReader

PICTURE_DRIVERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Suffixes of PNG and JPEG chips, and the GDAL drivers that open them; accepted only in training."""
MAX_REOPENED_PIXELS = 2**21
"""Smaller images are reopened for each window: thousands of chips would need too many file handles."""
LIST_SUFFIX = ".txt"
"""Suffix of a file that lists scenes, one per line; empty lines and lines that start with # are skipped."""


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """All images of a training run."""

    entries: tuple[CatalogEntry, ...]
    """Each image once; ids are unique."""
    validation: tuple[str, ...]
    """Ids of images named for validation."""
    test: tuple[str, ...]
    """Ids of images named for the test; no image is in both."""


def list_images(images: Sequence[str | Path], validation: Sequence[str] = (), test: Sequence[str] = ()) -> ImageList:
    """Expand files, folders, globs and addresses; held-out scenes may be among the images or be additional.

    A folder stands for its GeoTIFFs, or for its PNG and JPEG images when it has none.

    Args:
        images: scenes to train on, except those that are held out.
        validation: stems or ids of images, paths, folders, globs, or files that list them.
        test: likewise.

    Raises:
        SettingsError: a name matches no image or two, or a scene is named for two parts.
    """
    if not images:
        raise SettingsError("images must name at least one scene: a file, a folder, a glob or an address")
    known = list_scenes(_expand(images))
    named = {"validation": _find(validation, known, "validation"), "test": _find(test, known, "test")}
    entries = list_scenes([*(e.location for e in known), *named["validation"], *named["test"]])
    ids = {entry.location: entry.id for entry in entries}
    held = {key: tuple(dict.fromkeys(ids[location] for location in found)) for key, found in named.items()}
    twice = sorted(set(held["validation"]) & set(held["test"]))
    if twice:
        raise SettingsError(f"split.test: {', '.join(twice)} is also named for validation; name each scene once")
    return ImageList(entries=entries, **held)


def _expand(images: Sequence[str | Path]) -> list[str | Path]:
    """Replace folders without a GeoTIFF by their PNG and JPEG files; keep everything else."""
    result: list[str | Path] = []
    for image in images:
        folder = Path(image).expanduser()
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        pictures = [p for p in inside if p.suffix.lower() in PICTURE_DRIVERS and not p.name.startswith(".")]
        if pictures and not any(p.suffix.lower() in SUFFIXES for p in inside):
            result += pictures
        else:
            result.append(image)
    return result


def _find(names: Sequence[str], known: Sequence[CatalogEntry], key: str) -> list[str]:
    """Locations of the scenes that a setting names, in order."""
    found: list[str] = []
    for name in _listed(names, key):
        same = [e.location for e in known if name in (e.id, e.location, Path(e.location).stem) or _same_file(name, e)]
        if len(same) > 1:
            raise SettingsError(f"split.{key}: {name!r} is the stem of {', '.join(same)}; give the path of the one")
        if not same and not Path(name).expanduser().exists() and not glob.has_magic(name) and "://" not in name:
            raise SettingsError(f"split.{key}: {name!r} is neither a file nor the stem of an image; check the name")
        more = [] if same else [entry.location for entry in list_scenes(_expand([name]))]
        found += same or [next((e.location for e in known if _same_file(p, e)), p) for p in more]
    return found


def _listed(names: Sequence[str], key: str) -> list[str]:
    """The names, with list files replaced by the names in them."""
    result: list[str] = []
    for name in names:
        if not name.lower().endswith(LIST_SUFFIX):
            result.append(name)
            continue
        try:
            lines = [line.strip() for line in Path(name).expanduser().read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"split.{key}: the list {name} cannot be read: {error}") from error
        listed = [line for line in lines if line and not line.startswith("#")]
        if not listed:
            raise SettingsError(f"split.{key}: the list {name} names no scene; write one per line")
        result += listed
    return result


def _same_file(name: str, entry: CatalogEntry) -> bool:
    return Path(name).expanduser().absolute() == Path(entry.location).expanduser().absolute()


def reading_for(location: str | Path, reading: ReadingSpec | None = None) -> ReadingSpec:
    """The reading settings of an image: as given, plus the PNG or JPEG driver for files with their suffix."""
    reading = reading or ReadingSpec()
    driver = PICTURE_DRIVERS.get(Path(location).suffix.lower())
    if driver is None or driver in reading.drivers:
        return reading
    return replace(reading, drivers=(*reading.drivers, driver))


class ChipReader:
    """Reads windows of an image, which is open only during a read; safe to use from many threads."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and validity of a window, as `SceneReader.read` returns them."""
        with SceneReader(self.scene) as reader:
            return reader.read(window)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def open_reader(scene: Scene) -> SceneReader | ChipReader:
    """A reader that keeps a large image open, or reopens a small one for each window."""
    height, width = scene.files[0].grid.shape
    return ChipReader(scene) if height * width <= MAX_REOPENED_PIXELS else SceneReader(scene)
