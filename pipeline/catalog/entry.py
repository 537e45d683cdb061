"""A scene of a catalog, described by its files and by what the catalog says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import SceneError
from pipeline.scene import BandFile, ReadingSpec, Scene, describe_scene

if TYPE_CHECKING:
    from pipeline.model import ModelCard


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


def describe_entry(entry: CatalogEntry, reading: ReadingSpec, *, card: ModelCard | None = None) -> Scene:
    """Describe a scene of a catalog, or refuse it; see `describe_scene`.

    Raises:
        SceneError: the catalog is at fault, the scene cannot be processed correctly, or does not fit the model.
        TransientError: a remote file cannot be reached.
    """
    if entry.refused is not None:
        raise SceneError(entry.refused)
    return describe_scene(
        entry.location, reading, card=card, scene_id=entry.id, files=entry.files, acquired=entry.acquired
    )
