"""The scenes that a merge is made of: whole results in a folder, in order of preference, and which of them meet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import shapely

from pipeline.grid import RasterGrid
from pipeline.journal import REPORT, finished_report
from pipeline.lonlat import TURN, eastwards, outlined
from pipeline.mosaic import MosaicReader
from pipeline.report import SceneReport

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


def finished_scenes(out_dir: Path) -> tuple[MergedScene, ...]:
    """All whole results of a folder, in the order of their ids.

    Raises:
        SceneError: a mosaic among them is damaged.
    """
    found = (_finished(path.parent) for path in sorted(out_dir.glob(f"[!.]*/{REPORT}")))
    return tuple(sorted((scene for scene in found if scene is not None), key=lambda scene: scene.id))


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
    outlines = [outlined(scene.grid) for scene in scenes]
    # What ends at one side of the antimeridian goes on at the other.
    turned = [shapely.transform(each, partial(eastwards, by=by)) for by in (-TURN, 0, TURN) for each in outlines]
    left, right = shapely.STRtree(turned).query(outlines, predicate="dwithin", distance=NEAR)
    pairs = np.column_stack([left, right % max(1, len(scenes))])
    ordered = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    return [(int(first), int(second)) for first, second in ordered]


def _finished(folder: Path) -> MergedScene | None:
    try:
        record = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        found = SceneReport.from_json(record)
    except (OSError, ValueError, TypeError):
        return None
    outputs = {kind: folder / str(name) for kind, name in found.outputs.items()}
    whole = all(path.is_file() for path in outputs.values()) and {"polygons", "mask", "probability"} <= set(outputs)
    if not whole or (found.content_key is not None and finished_report(folder, found.content_key) is None):
        return None
    with MosaicReader(outputs["probability"]) as mosaic:
        grid, card = mosaic.grid, mosaic.card
    written = outputs["polygons"].stat()
    known_by = (found.content_key,) if found.content_key else (str(written.st_mtime_ns),)
    return MergedScene(
        id=folder.name,
        polygons=outputs["polygons"],
        mask=outputs["mask"],
        grid=grid,
        is_full=found.valid_pixels == found.pixels,
        classes={value: name for _, value, name in card.foreground},
        date=found.date,
        identity=(folder.name, found.date, str(written.st_size), *known_by),
    )
