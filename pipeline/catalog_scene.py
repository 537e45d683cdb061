"""A scene of a catalog, described by its files and by what the catalog says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import SceneError
from pipeline.scene import ReadingSpec, Scene, describe_scene

if TYPE_CHECKING:
    from pipeline.card import ModelCard
    from pipeline.catalog import CatalogEntry


def describe_entry(entry: CatalogEntry, reading: ReadingSpec, *, card: ModelCard | None = None) -> Scene:
    """Describe a scene of a catalog, or refuse it; see `describe_scene`.

    Raises:
        SceneError: the catalog is at fault, the scene cannot be processed correctly, or does not fit the model.
        WorldError: a remote file cannot be reached.
    """
    if entry.refused is not None:
        raise SceneError(entry.refused)
    return describe_scene(
        entry.location, reading, card=card, scene_id=entry.id, files=entry.files, acquired=entry.acquired
    )
