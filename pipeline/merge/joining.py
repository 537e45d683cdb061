"""Polygons of several scenes that go on in each other -> one polygon, measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import measure_on_ground
from pipeline.merge.projection import onto_plane, repaired
from pipeline.merge.reading import FID, read_rows
from pipeline.merge.scenes import MergedScene
from pipeline.polygons import pixels_to_map

FINEST_PX = 2.0**-10
"""Joined outlines have vertices at steps of this, so that nothing in them is as thin as the rounding of floats."""
MEMBERS = 4096
"""Polygons are joined in lots of about so many."""

Row = Mapping[str, object]
"""The columns of a polygon but for its geometry."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One of the polygons that are joined."""

    row: Row
    """Its columns."""
    geometry: shapely.Geometry
    """On the plane of the scene that leads."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Polygons that were made of several; one row per polygon."""

    rows: Sequence[Row]
    """Their columns."""
    geometry: NDArray[np.object_]
    """In the CRS of the scene that leads."""


def join_pieces(groups: Iterable[Sequence[tuple[MergedScene, int]]]) -> Iterator[Joined]:
    """Join groups of polygons, each given by scenes and numbers in their files, the leading one first.

    Args:
        groups: that have the leading scene in common.

    Yields:
        A polygon for each group, in order, in lots.

    Raises:
        SceneError: a file is damaged, or a scene's polygons have no place on the plane of the leading one.
    """
    lot: list[Sequence[tuple[MergedScene, int]]] = []
    for group in groups:
        lot.append(group)
        if sum(map(len, lot)) >= MEMBERS:
            yield _joined(lot)
            lot = []
    if lot:
        yield _joined(lot)


def _joined(lot: Sequence[Sequence[tuple[MergedScene, int]]]) -> Joined:
    lead = lot[0][0][0]
    pieces = _read([member for group in lot for member in group], lead)
    groups = [[pieces[scene.id, fid] for scene, fid in group] for group in lot]
    merged = [_union([piece.geometry for piece in group]) for group in groups]
    geometry = repaired(pixels_to_map(np.array(merged, dtype=object), lead.grid.transform))
    area_m2, perimeter_m = measure_on_ground(geometry, lead.grid.crs)
    rows = [
        {**_row(group, whole), "area_m2": float(area), "perimeter_m": float(perimeter)}
        for group, whole, area, perimeter in zip(groups, merged, area_m2, perimeter_m, strict=True)
    ]
    return Joined(rows=rows, geometry=geometry)


def _read(members: Iterable[tuple[MergedScene, int]], lead: MergedScene) -> dict[tuple[str, int], Piece]:
    """The pieces by scene and number."""
    wanted: dict[str, tuple[MergedScene, list[int]]] = {}
    for scene, fid in members:
        wanted.setdefault(scene.id, (scene, []))[1].append(fid)
    pieces = {}
    for scene, fids in wanted.values():
        for table, geometry in read_rows(scene, sorted(fids)):
            rows = table.drop_columns([table.column_names[-1]]).to_pylist()
            placed = onto_plane(geometry, scene.grid.crs, lead.grid)
            for row, each in zip(rows, placed, strict=True):
                pieces[scene.id, row[FID]] = Piece(row=row, geometry=each)
    return pieces


def _union(geometry: Sequence[shapely.Geometry]) -> shapely.Geometry:
    """The union without vertices on straight edges; shells counter-clockwise."""
    parts = shapely.get_parts(shapely.get_parts(shapely.union_all(geometry, grid_size=FINEST_PX)))
    parts = shapely.simplify(parts[shapely.get_dimensions(parts) == 2], 0)
    parts = shapely.orient_polygons(shapely.normalize(parts))
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)


def _row(group: Sequence[Piece], whole: shapely.Geometry) -> dict[str, object]:
    """The columns of a joined polygon: pixels that several scenes saw are counted once, by their share of the area."""
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
