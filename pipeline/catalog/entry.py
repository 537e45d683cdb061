"""Catalog entries: one scene of a catalog with its files, and its description from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import SceneError
from pipeline.scene import BandFile, ReadingSpec, Scene, SceneSource, describe_scene
from pipeline.storage import NAMED_BY_OPERATOR, HostRules
from pipeline.text import without_secrets

if TYPE_CHECKING:
    from pipeline.model import ModelCard


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """One scene to be processed."""

    id: str
    """Unique in its catalog; names the scene's output folder."""
    location: str
    """Path or address of its first file, for opening only: an address may hold secrets, see `shown`."""
    files: tuple[BandFile, ...] = ()
    """The raster files of its bands, if the catalog lists them; empty: the location is the raster."""
    acquired: str | None = None
    """Acquisition time, ISO 8601 in UTC, if the catalog has it."""
    source: str | None = None
    rules: HostRules = NAMED_BY_OPERATOR
    """The hosts that requests for its files may reach."""
    refused: str | None = None
    """Why it cannot be processed, for an error of the catalog; then the id may be a row, as `a.csv, line 3`."""

    @property
    def shown(self) -> str:
        """The location without secrets, for messages and documents."""
        return without_secrets(self.location)


def describe_entry(entry: CatalogEntry, reading: ReadingSpec, *, card: ModelCard | None = None) -> Scene:
    """Describe a scene of a catalog, or refuse it; see `describe_scene`.

    Raises:
        SceneError: the catalog's entry is wrong, or the scene cannot be processed correctly or does not fit the model.
        TransientError: a remote file cannot be reached.
    """
    if entry.refused is not None:
        raise SceneError(entry.refused)
    source = SceneSource(files=entry.files, acquired=entry.acquired, rules=entry.rules)
    return describe_scene(entry.location, reading, card=card, scene_id=entry.id, source=source)
