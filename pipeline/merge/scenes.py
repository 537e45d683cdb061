"""The scenes that a merge is made of: whole results in a folder, in order of preference, and which of them meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import shapely

from pipeline.grid import FULL_CIRCLE_DEG, RasterGrid, outline_polygon, unwrap_longitudes
from pipeline.mosaic import MosaicReader
from pipeline.results import REPORT, Results, SceneReport
from pipeline.storage import gdal_env

NEAR = 1e-3
"""Scenes whose outlines are nearer than this share of a degree may meet; whether they do, their pixels tell."""


@dataclass(frozen=True, kw_only=True)
class MergedScene:
    """One whole result."""

    id: str
    """The scene, the name of its folder."""
    polygons: Path
    """File of its polygons."""
    mask: Path
    """File of its classes, which knows where the scene has data."""
    grid: RasterGrid
    """Its pixel plane."""
    is_full: bool
    """Whether every pixel is valid."""
    classes: Mapping[int, str]
    """Class value -> name of what its model looks for."""
    date: str
    """Of the scene, ISO 8601 in UTC; empty when unknown."""
    identity: tuple[str, ...]
    """Changes whenever the polygons do."""


def finished_scenes(results: Results) -> tuple[MergedScene, ...]:
    """All whole results under an address, in the order of their ids; `localized` fetches their files.

    Raises:
        SceneError: a mosaic among them is damaged.
        TransientError: disk or network refuse.
    """
    found = (_finished(results, scene_id) for scene_id in results.scenes())
    return tuple(sorted((scene for scene in found if scene is not None), key=lambda scene: scene.id))


def localized(scenes: Iterable[MergedScene], results: Results, folder: Path) -> tuple[MergedScene, ...]:
    """The scenes with their files on this machine, copies below a folder where they lie elsewhere.

    Raises:
        TransientError: disk or network refuse.
    """
    return tuple(
        replace(
            scene,
            polygons=results.download(str(scene.polygons), folder),
            mask=scene.mask if scene.is_full else results.download(str(scene.mask), folder),
        )
        for scene in scenes
    )


def in_order(scenes: Sequence[MergedScene], prefer: Literal["newest", "oldest", "finest"]) -> tuple[MergedScene, ...]:
    """Scenes by preference, the best first: by date or pixel size, then by the other, then by id."""
    by_id = sorted(scenes, key=lambda scene: scene.id)
    by_size = sorted(by_id, key=lambda scene: scene.grid.resolution_m)
    if prefer == "finest":
        newest = sorted(by_id, key=lambda scene: scene.date, reverse=True)
        return tuple(sorted(newest, key=lambda scene: scene.grid.resolution_m))
    return tuple(sorted(by_size, key=lambda scene: scene.date, reverse=prefer == "newest"))


def meeting(scenes: Sequence[MergedScene]) -> list[tuple[int, int]]:
    """Pairs of places of scenes whose outlines meet or nearly do, the first before the second."""
    outlines = [outline_polygon(scene.grid) for scene in scenes]
    # What ends at one side of the antimeridian goes on at the other.
    turned = [
        shapely.transform(each, partial(unwrap_longitudes, by=by))
        for by in (-FULL_CIRCLE_DEG, 0, FULL_CIRCLE_DEG)
        for each in outlines
    ]
    left, right = shapely.STRtree(turned).query(outlines, predicate="dwithin", distance=NEAR)
    pairs = np.column_stack([left, right % max(1, len(scenes))])
    ordered = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    return [(int(first), int(second)) for first, second in ordered]


def _finished(results: Results, scene_id: str) -> MergedScene | None:
    content = results.read(f"{scene_id}/{REPORT}") or b""
    try:
        found = SceneReport.from_json(json.loads(content), ignore_unknown=True)
    except (ValueError, TypeError):
        return None
    names, sizes = found.outputs.names, results.sizes(scene_id)
    if not {"polygons", "mask", "probability"} <= {*names} or not {*names.values()} <= {*sizes}:
        return None
    if found.inputs.content_key is not None and results.finished(scene_id, found.inputs.content_key) is None:
        return None
    place = results.location(f"{scene_id}/{names['probability']}")
    with gdal_env(place, ignore_sidecars=True), MosaicReader(Path(place.gdal_path)) as mosaic:
        grid, card = mosaic.grid, mosaic.card
    size, key = str(sizes[names["polygons"]]), found.inputs.content_key or hashlib.sha256(content).hexdigest()
    return MergedScene(
        id=scene_id,
        polygons=Path(scene_id, names["polygons"]),
        mask=Path(scene_id, names["mask"]),
        grid=grid,
        is_full=found.statistics.valid_pixels == found.statistics.pixels,
        classes={value: name for _, value, name in card.foreground},
        date=found.inputs.date,
        identity=(scene_id, found.inputs.date, size, key),
    )
