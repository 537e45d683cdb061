"""Input scenes of a merge: complete results in a folder, their order of priority, and which of them overlap."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import shapely

from pipeline.errors import SceneError, SettingsError
from pipeline.grid import FULL_CIRCLE_DEG, RasterGrid, outline_polygon, unwrap_longitudes
from pipeline.mosaic import MosaicReader
from pipeline.results import REPORT, Documents, Results, read_report
from pipeline.storage import check_vector, gdal_env, sha256_file

log = logging.getLogger(__name__)

NEAR_DEG = 1e-3
"""Scenes whose outlines are within this distance are candidates for an overlap; degrees."""


@dataclass(frozen=True, kw_only=True)
class MergedScene:
    """One complete result."""

    id: str
    """Scene id, the name of its folder."""
    polygons: Path
    mask: Path
    """File of its class mask, whose nodata gives the coverage."""
    grid: RasterGrid
    is_full: bool
    """Whether every pixel is valid."""
    classes: Mapping[int, str]
    """Class value -> name, of the classes that its model predicts."""
    date: str
    """Date of the scene, ISO 8601 in UTC; empty when unknown."""
    identity: tuple[str, ...]
    """Changes whenever the polygons do."""
    is_edited: bool = False
    """Whether files of the result were changed after they were written."""


def finished_scenes(results: Results) -> tuple[MergedScene, ...]:
    """All complete results under an address, in the order of their ids; `localized` downloads their files."""
    found = (_finished(results, scene_id) for scene_id in results.scenes.ids())
    return tuple(sorted((scene for scene in found if scene is not None), key=lambda scene: scene.id))


def localized(scenes: Iterable[MergedScene], documents: Documents, folder: Path) -> tuple[MergedScene, ...]:
    """The scenes with their files on this machine; those in an object store are downloaded to a folder."""
    return tuple(
        replace(
            scene,
            polygons=_plain_table(documents.download(str(scene.polygons), folder)),
            mask=scene.mask if scene.is_full else documents.download(str(scene.mask), folder),
        )
        for scene in scenes
    )


def _plain_table(polygons: Path) -> Path:
    """A GeoPackage, after its check by `check_vector`."""
    try:
        check_vector(polygons)
    except (SettingsError, OSError, ValueError) as error:
        raise SceneError(f"{error}; delete the folder of the scene and run again") from error
    return polygons


def by_priority(
    scenes: Sequence[MergedScene], priority: Literal["newest", "oldest", "finest"]
) -> tuple[MergedScene, ...]:
    """Scenes in order of priority: by date or pixel size, then by the other, then by id."""
    by_id = sorted(scenes, key=lambda scene: scene.id)
    by_size = sorted(by_id, key=lambda scene: scene.grid.resolution_m)
    if priority == "finest":
        newest = sorted(by_id, key=lambda scene: scene.date, reverse=True)
        return tuple(sorted(newest, key=lambda scene: scene.grid.resolution_m))
    return tuple(sorted(by_size, key=lambda scene: scene.date, reverse=priority == "newest"))


def overlapping_pairs(scenes: Sequence[MergedScene]) -> list[tuple[int, int]]:
    """Index pairs of scenes whose outlines overlap or nearly do, the first before the second."""
    outlines = [outline_polygon(scene.grid) for scene in scenes]
    # Scenes on both sides of the antimeridian are neighbours.
    shifted = [
        shapely.transform(each, partial(unwrap_longitudes, by=by))
        for by in (-FULL_CIRCLE_DEG, 0, FULL_CIRCLE_DEG)
        for each in outlines
    ]
    left, right = shapely.STRtree(shifted).query(outlines, predicate="dwithin", distance=NEAR_DEG)
    pairs = np.column_stack([left, right % max(1, len(scenes))])
    ordered = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    return [(int(first), int(second)) for first, second in ordered]


def _finished(results: Results, scene_id: str) -> MergedScene | None:
    content = results.documents.read(f"{scene_id}/{REPORT}") or b""
    found = read_report(content, scene_id)
    if found is None:
        if content:
            log.warning("%s: its report is invalid, so it is left out", results.documents.address(scene_id))
        return None
    names, sizes = found.outputs.names, results.documents.sizes(scene_id)
    if not {"polygons", "mask", "probability"} <= {*names} or not {*names.values()} <= {*sizes}:
        return None

    # The files may belong to a swap in progress: the key proves a complete result.
    edited: tuple[str, ...] = ()
    if found.inputs.content_key is not None:
        complete = results.scenes.finished(scene_id, found.inputs.content_key)
        if complete is None:
            address = results.documents.address(scene_id)
            log.warning("%s: its files differ from its report, so it is left out; segment it again", address)
            return None
        if complete.reason is not None:
            log.warning("%s: %s; merged as it is", results.documents.address(scene_id), complete.reason)
            edited = (sha256_file(Path(results.documents.address(f"{scene_id}/{names['polygons']}"))),)
    location = results.documents.location(f"{scene_id}/{names['probability']}")
    with gdal_env(location, sidecars=()), MosaicReader(Path(location.gdal_path)) as mosaic:
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
        identity=(scene_id, found.inputs.date, size, key, *edited),
        is_edited=bool(edited),
    )
