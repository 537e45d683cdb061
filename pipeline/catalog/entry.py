"""Catalog entries: one scene of a catalog with its files, and its description from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import SceneError
from pipeline.scene import BandFile, ReadingSpec, Scene, SceneSource, describe_scene

if TYPE_CHECKING:
    from pipeline.model import ModelCard


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One scene to be processed."""

    id: str
    """Unique in its catalog; names the scene's output folder."""
    location: str
    files: tuple[BandFile, ...] = ()
    """The raster files of its bands, if the catalog lists them; empty: the location is the raster."""
    acquired: str | None = None
    """Acquisition time, ISO 8601 in UTC, if the catalog has it."""
    source: str | None = None
    refused: str | None = None
    """Why it cannot be processed, for an error of the catalog; then the id may be a row, as `a.csv, line 3`."""


def describe_entry(entry: CatalogEntry, reading: ReadingSpec, *, card: ModelCard | None = None) -> Scene:
    """Describe a scene of a catalog, or refuse it; see `describe_scene`.

    Raises:
        SceneError: the catalog's entry is wrong, or the scene cannot be processed correctly or does not fit the model.
        TransientError: a remote file cannot be reached.
    """
    if entry.refused is not None:
        raise SceneError(entry.refused)
    source = SceneSource(files=entry.files, acquired=entry.acquired)
    return describe_scene(entry.location, reading, card=card, scene_id=entry.id, source=source)
