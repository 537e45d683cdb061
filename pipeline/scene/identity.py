"""Identity of a scene: the facts by which two descriptions are of the same pixels, wherever the file lies.

A local file is known by size and time; a remote one, which has neither, by its address and its fingerprint; a scene
of several files by all of them, and by what the catalog says of them.
"""

from __future__ import annotations

from dataclasses import asdict

from pipeline.grid import RasterGrid
from pipeline.scene.describe import Scene
from pipeline.scene.file import SceneFile


def identity_facts(scene: Scene) -> dict[str, object]:
    """The facts of a scene that decide its result, as JSON takes them with `default=str`."""
    return {**asdict(scene), "grid": _grid_facts(scene.grid), "files": [_file_facts(file) for file in scene.files]}


def _file_facts(file: SceneFile) -> dict[str, object]:
    place = file.location.persistent_path if file.location.is_remote else None
    return {**asdict(file), "grid": _grid_facts(file.grid), "location": place}


def _grid_facts(grid: RasterGrid) -> dict[str, object]:
    return {"crs": grid.crs.to_wkt(), "transform": tuple(grid.transform)[:6], "shape": grid.shape}
