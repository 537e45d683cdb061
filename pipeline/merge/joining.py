"""Union of polygons that continue across scenes, with recomputed attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import measure_on_ground
from pipeline.merge.projection import make_valid, to_pixel_plane
from pipeline.merge.reading import FID, read_rows
from pipeline.merge.scenes import MergedScene
from pipeline.polygons import pixels_to_map

SNAP_GRID_PX = 2.0**-10
"""Grid size of unions, pixels: vertices are snapped to it, so that no sliver is as thin as floating-point error."""
MEMBERS_PER_BATCH = 4096
"""About how many polygons are joined in one batch."""

Row = Mapping[str, object]
"""The columns of a polygon without its geometry."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One of the polygons that are joined."""

    row: Row
    geometry: shapely.Geometry
    """In pixel coordinates of the leading scene."""


@dataclass(frozen=True, kw_only=True)
class JoinedPolygons:
    """Joined polygons; one row per polygon."""

    rows: Sequence[Row]
    geometry: NDArray[np.object_]
    """In the CRS of the leading scene."""


def join_pieces(groups: Iterable[Sequence[tuple[MergedScene, int]]]) -> Iterator[JoinedPolygons]:
    """Yield batches with one polygon per group, in order; a group lists scenes and feature ids.

    All groups have the same leading scene, which comes first. SceneError if a file is damaged, or polygons cannot be
    transformed to the leading scene's CRS.
    """
    batch: list[Sequence[tuple[MergedScene, int]]] = []
    for group in groups:
        batch.append(group)
        if sum(map(len, batch)) >= MEMBERS_PER_BATCH:
            yield _join(batch)
            batch = []
    if batch:
        yield _join(batch)


def _join(batch: Sequence[Sequence[tuple[MergedScene, int]]]) -> JoinedPolygons:
    lead = batch[0][0][0]
    pieces = _read([member for group in batch for member in group], lead)
    groups = [[pieces[scene.id, fid] for scene, fid in group] for group in batch]
    merged = [_union([piece.geometry for piece in group]) for group in groups]
    geometry = make_valid(pixels_to_map(np.array(merged, dtype=object), lead.grid.transform))
    area_m2, perimeter_m = measure_on_ground(geometry, lead.grid.crs)
    rows = [
        {**_row(group, whole), "area_m2": float(area), "perimeter_m": float(perimeter)}
        for group, whole, area, perimeter in zip(groups, merged, area_m2, perimeter_m, strict=True)
    ]
    return JoinedPolygons(rows=rows, geometry=geometry)


def _read(members: Iterable[tuple[MergedScene, int]], lead: MergedScene) -> dict[tuple[str, int], Piece]:
    """The pieces by scene id and feature id."""
    wanted: dict[str, tuple[MergedScene, list[int]]] = {}
    for scene, fid in members:
        wanted.setdefault(scene.id, (scene, []))[1].append(fid)
    pieces = {}
    for scene, fids in wanted.values():
        for table, geometry in read_rows(scene, sorted(fids)):
            rows = table.drop_columns([table.column_names[-1]]).to_pylist()
            on_plane = to_pixel_plane(geometry, scene.grid.crs, lead.grid)
            for row, each in zip(rows, on_plane, strict=True):
                pieces[scene.id, row[FID]] = Piece(row=row, geometry=each)
    return pieces


def _union(geometry: Sequence[shapely.Geometry]) -> shapely.Geometry:
    """The union without vertices on straight edges; shells counter-clockwise."""
    parts = shapely.get_parts(shapely.get_parts(shapely.union_all(geometry, grid_size=SNAP_GRID_PX)))
    parts = shapely.simplify(parts[shapely.get_dimensions(parts) == 2], 0)
    parts = shapely.orient_polygons(shapely.normalize(parts))
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def _row(group: Sequence[Piece], whole: shapely.Geometry) -> dict[str, object]:
    """The columns of a joined polygon; pixels in the overlap of scenes count once, by their share of the area."""
    counts, means, maxima = (
        np.array([piece.row[name] for piece in group], float)
        for name in ("pixel_count", "mean_probability", "max_probability")
    )
    share = whole.area / sum(piece.geometry.area for piece in group)
    return {
        **group[0].row,
        "pixel_count": max(1, round(counts.sum() * share)),
        "mean_probability": float((means * counts).sum() / counts.sum()),
        "max_probability": float(maxima.max()),
        "pieces": len(group),
    }
