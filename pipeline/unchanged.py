"""Whether a scene is still what was described: of a file that is replaced while it is read no mosaic is made."""

from __future__ import annotations

from pipeline.errors import WorldError
from pipeline.scene import Scene, SceneFile, remote_fingerprint


def check_unchanged(scene: Scene) -> None:
    """Hold a scene against its files, whose size, time or fingerprint tell of another content.

    Raises:
        WorldError: one was replaced, changed or removed since it was described; described anew it can be read.
    """
    for file in scene.files:
        if not _is_unchanged(file):
            raise WorldError(
                f"{file.location}: was replaced, changed or removed while it was read, so nothing of it was published; "
                "run again when nobody writes to it"
            )


def _is_unchanged(file: SceneFile) -> bool:
    place = file.location
    if place.is_remote:
        return remote_fingerprint(place, [file.driver]) == file.fingerprint
    try:
        return (place.size_bytes, place.modified_ns) == (file.size_bytes, file.modified_ns)
    except OSError:
        return False
