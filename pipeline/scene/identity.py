"""Identity of a scene: the facts that two descriptions of the same pixels have in common, wherever the file lies.

A local file is identified by size and time; a remote one, which has neither, by address and fingerprint; a scene
of several files by all of them, and by their values in the catalog.
"""

from __future__ import annotations

from dataclasses import asdict

from pipeline.grid import RasterGrid
from pipeline.scene.describe import Scene
from pipeline.scene.file import SceneFile


def identity_facts(scene: Scene) -> dict[str, object]:
    """The facts of a scene that determine its result, for JSON with `default=str`."""
    return {**asdict(scene), "grid": _grid_facts(scene.grid), "files": [_file_facts(file) for file in scene.files]}


def _file_facts(file: SceneFile) -> dict[str, object]:
    place = file.location.persistent_path if file.location.is_remote else None
    facts = {**asdict(file), "grid": _grid_facts(file.grid), "location": place}
    del facts["resident_bytes"]  # decides how blocks are read, not what is read
    return facts


def _grid_facts(grid: RasterGrid) -> dict[str, object]:
    return {"crs": grid.crs.to_wkt(), "transform": tuple(grid.transform)[:6], "shape": grid.shape}
