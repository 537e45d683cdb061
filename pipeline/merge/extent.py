"""Spatial index of an area with very many vertices, for fast predicates and clipping.

A predicate on an area with ten thousand holes visits every hole for each polygon. So shells and holes are indexed
separately, and a polygon is compared only with those that its bounds intersect.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely
from numpy.typing import NDArray

Geometries = NDArray[np.object_]
Operation = Callable[[shapely.Geometry, shapely.Geometry], shapely.Geometry]

MAX_PREPARED_SHELLS = 16
"""At most this many shells are prepared and tested one by one; above it, a tree finds those near a polygon."""


class PreparedExtent:
    """An area as shells and holes; `geometry` is the original."""

    def __init__(self, geometry: shapely.Geometry) -> None:
        """Split a valid polygon or multipolygon into shells and holes."""
        parts = shapely.get_parts(geometry)
        rings, owner = shapely.get_rings(parts[shapely.get_dimensions(parts) == 2], return_index=True)
        first = np.r_[True, owner[1:] != owner[:-1]][: len(rings)]
        shells, holes = shapely.polygons(rings[first]), shapely.polygons(rings[~first])
        self._set(geometry, shells, _without_islands(holes, shells))

    def intersects(self, geometry: Geometries) -> NDArray[np.bool_]:
        """Whether polygons or multipolygons intersect one of its shells, holes ignored."""
        found = np.zeros(len(geometry), bool)
        if len(self.shells) <= MAX_PREPARED_SHELLS:
            for shell in self.shells:
                found |= shapely.intersects(shell, geometry)
        else:
            found[self._shell_tree.query(geometry, predicate="intersects")[0]] = True
        return found

    def covers(self, geometry: Geometries) -> NDArray[np.bool_]:
        """Whether it covers polygons or multipolygons, borders included."""
        parts, owner = shapely.get_parts(geometry, return_index=True)
        covered = np.ones(len(geometry), bool)
        covered[owner[~self._in_shell(parts)]] = False
        covered[owner[self._holes_in(parts)[0]]] = False
        return covered

    def clip(self, geometry: Geometries) -> tuple[Geometries, NDArray[np.intp]]:
        """The intersection with polygons and multipolygons, as polygons, each with the index of its original."""
        parts, owner = shapely.get_parts(geometry, return_index=True)
        clipped = np.array(parts, dtype=object)
        outside = np.flatnonzero(~self._in_shell(parts))
        pierced = np.unique(self._holes_in(parts)[0])
        clipped[outside] = _each_with(shapely.intersection, clipped[outside], self._shell_tree)
        clipped[pierced] = _each_with(shapely.difference, clipped[pierced], self._hole_tree)
        return _polygons_of(clipped, owner)

    def expanded(self, by: float) -> PreparedExtent:
        """The extent with its borders moved outwards."""
        shells, holes = (
            shapely.buffer(each, distance, join_style="mitre")
            for each, distance in ((self.shells, by), (self.holes, -by))
        )
        wide = PreparedExtent(shapely.MultiPolygon())
        wide._set(self.geometry, shells, holes[~shapely.is_empty(holes)])
        return wide

    def shrunk(self, by: float) -> PreparedExtent:
        """The extent with its borders moved inwards; holes smaller than `by` squared are ignored."""
        large = self.holes[shapely.area(self.holes) >= by**2]
        area = shapely.difference(shapely.union_all(self.shells), shapely.union_all(large))
        return PreparedExtent(shapely.buffer(area, -by, join_style="mitre"))

    def _set(self, geometry: shapely.Geometry, shells: Geometries, holes: Geometries) -> None:
        self.geometry, self.shells, self.holes = geometry, shells, holes
        self._shell_tree, self._hole_tree = shapely.STRtree(shells), shapely.STRtree(holes)
        if len(shells) <= MAX_PREPARED_SHELLS:
            shapely.prepare(shells)

    def _in_shell(self, parts: Geometries) -> NDArray[np.bool_]:
        """Whether each polygon lies within one shell, holes ignored."""
        inside = np.zeros(len(parts), bool)
        if len(self.shells) <= MAX_PREPARED_SHELLS:
            for shell in self.shells:
                inside |= shapely.covers(shell, parts)
        else:
            inside[self._shell_tree.query(parts, predicate="covered_by")[0]] = True
        return inside

    def _holes_in(self, parts: Geometries) -> NDArray[np.intp]:
        """Index pairs of polygons and holes that have an area in common."""
        part, hole = self._hole_tree.query(parts, predicate="intersects")
        apart = shapely.touches(parts[part], self.holes[hole])
        return np.stack([part[~apart], hole[~apart]])


def _without_islands(holes: Geometries, shells: Geometries) -> Geometries:
    """Holes without the shells inside them."""
    holed = np.array(holes, dtype=object)
    hole, shell = shapely.STRtree(shells).query(holes, predicate="covers")
    for index, island in zip(hole, shell, strict=True):
        holed[index] = shapely.difference(holed[index], shells[island])
    return holed


def _each_with(operation: Operation, geometry: Geometries, tree: shapely.STRtree) -> Geometries:
    """Polygons of an operation on each geometry and the union of the geometries of a tree that intersect it."""
    index, found = tree.query(geometry, predicate="intersects")
    ends = np.searchsorted(index, np.arange(len(geometry) + 1))
    results = np.array(geometry, dtype=object)
    for row in range(len(geometry)):
        others = shapely.union_all(tree.geometries[found[ends[row] : ends[row + 1]]])
        results[row] = shapely.multipolygons(_polygons_of(np.array([operation(geometry[row], others)]))[0])
    return results


def _polygons_of(geometry: Geometries, owner: NDArray[np.intp] | None = None) -> tuple[Geometries, NDArray[np.intp]]:
    """The polygons in geometries, each with the index of its geometry, mapped by `owner`."""
    parts, index = shapely.get_parts(geometry, return_index=True)
    parts, nested = shapely.get_parts(parts, return_index=True)
    index = index[nested]
    kept = shapely.get_dimensions(parts) == 2
    return parts[kept], (index if owner is None else owner[index])[kept]
