"""An area of very many vertices, looked at only where polygons lie.

Ground with ten thousand holes costs as much for each polygon as all its holes together. So shells and holes are kept
apart, and a polygon meets those alone that lie where it does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely
from numpy.typing import NDArray

Geometries = NDArray[np.object_]
Operation = Callable[[shapely.Geometry, shapely.Geometry], shapely.Geometry]

FEW = 16
"""So many shells are prepared and asked one by one; of more, those near a polygon are looked up."""


class PreparedExtent:
    """Shells less holes; `geometry` is what it was made of."""

    def __init__(self, geometry: shapely.Geometry) -> None:
        """Take a valid polygon or multipolygon apart."""
        parts = shapely.get_parts(geometry)
        rings, owner = shapely.get_rings(parts[shapely.get_dimensions(parts) == 2], return_index=True)
        first = np.r_[True, owner[1:] != owner[:-1]][: len(rings)]
        shells, holes = shapely.polygons(rings[first]), shapely.polygons(rings[~first])
        self._hold(geometry, shells, _without_islands(holes, shells))

    def meets(self, geometry: Geometries) -> NDArray[np.bool_]:
        """Whether polygons or multipolygons touch one of its shells, also where that has a hole."""
        met = np.zeros(len(geometry), bool)
        if len(self.shells) <= FEW:
            for shell in self.shells:
                met |= shapely.intersects(shell, geometry)
        else:
            met[self._shell_tree.query(geometry, predicate="intersects")[0]] = True
        return met

    def covers(self, geometry: Geometries) -> NDArray[np.bool_]:
        """Whether polygons or multipolygons lie in it, borders included."""
        parts, owner = shapely.get_parts(geometry, return_index=True)
        covered = np.ones(len(geometry), bool)
        covered[owner[~self._in_shell(parts)]] = False
        covered[owner[self._holes_in(parts)[0]]] = False
        return covered

    def clip(self, geometry: Geometries) -> tuple[Geometries, NDArray[np.intp]]:
        """What lies in it of polygons and multipolygons, as polygons, each with the place of what it is a part of."""
        parts, owner = shapely.get_parts(geometry, return_index=True)
        clipped = np.array(parts, dtype=object)
        outside = np.flatnonzero(~self._in_shell(parts))
        pierced = np.unique(self._holes_in(parts)[0])
        clipped[outside] = _each_with(shapely.intersection, clipped[outside], self._shell_tree)
        clipped[pierced] = _each_with(shapely.difference, clipped[pierced], self._hole_tree)
        return _polygons_of(clipped, owner)

    def widened(self, by: float) -> PreparedExtent:
        """The extent with its borders moved outwards."""
        shells, holes = (
            shapely.buffer(each, distance, join_style="mitre")
            for each, distance in ((self.shells, by), (self.holes, -by))
        )
        wide = PreparedExtent(shapely.MultiPolygon())
        wide._hold(self.geometry, shells, holes[~shapely.is_empty(holes)])
        return wide

    def narrowed(self, by: float) -> PreparedExtent:
        """The extent less what is nearer than this to its border; holes smaller than its square are taken for none."""
        large = self.holes[shapely.area(self.holes) >= by**2]
        ground = shapely.difference(shapely.union_all(self.shells), shapely.union_all(large))
        return PreparedExtent(shapely.buffer(ground, -by, join_style="mitre"))

    def _hold(self, geometry: shapely.Geometry, shells: Geometries, holes: Geometries) -> None:
        self.geometry, self.shells, self.holes = geometry, shells, holes
        self._shell_tree, self._hole_tree = shapely.STRtree(shells), shapely.STRtree(holes)
        if len(shells) <= FEW:
            shapely.prepare(shells)

    def _in_shell(self, parts: Geometries) -> NDArray[np.bool_]:
        """Whether each polygon lies within one shell, whatever its holes."""
        inside = np.zeros(len(parts), bool)
        if len(self.shells) <= FEW:
            for shell in self.shells:
                inside |= shapely.covers(shell, parts)
        else:
            inside[self._shell_tree.query(parts, predicate="covered_by")[0]] = True
        return inside

    def _holes_in(self, parts: Geometries) -> NDArray[np.intp]:
        """Pairs of places of polygons and of holes that have some area in common."""
        part, hole = self._hole_tree.query(parts, predicate="intersects")
        apart = shapely.touches(parts[part], self.holes[hole])
        return np.stack([part[~apart], hole[~apart]])


def _without_islands(holes: Geometries, shells: Geometries) -> Geometries:
    """Holes less the shells that lie in them."""
    holed = np.array(holes, dtype=object)
    hole, shell = shapely.STRtree(shells).query(holes, predicate="covers")
    for place, island in zip(hole, shell, strict=True):
        holed[place] = shapely.difference(holed[place], shells[island])
    return holed


def _each_with(operation: Operation, geometry: Geometries, tree: shapely.STRtree) -> Geometries:
    """The areas that an operation makes of each geometry and the union of those of a tree that it meets."""
    place, met = tree.query(geometry, predicate="intersects")
    ends = np.searchsorted(place, np.arange(len(geometry) + 1))
    made = np.array(geometry, dtype=object)
    for here in range(len(geometry)):
        others = shapely.union_all(tree.geometries[met[ends[here] : ends[here + 1]]])
        made[here] = shapely.multipolygons(_polygons_of(np.array([operation(geometry[here], others)]))[0])
    return made


def _polygons_of(geometry: Geometries, owner: NDArray[np.intp] | None = None) -> tuple[Geometries, NDArray[np.intp]]:
    """The polygons in geometries, each with the place of its geometry or what `owner` says of that."""
    parts, place = shapely.get_parts(geometry, return_index=True)
    parts, nested = shapely.get_parts(parts, return_index=True)
    place = place[nested]
    kept = shapely.get_dimensions(parts) == 2
    return parts[kept], (place if owner is None else owner[place])[kept]
