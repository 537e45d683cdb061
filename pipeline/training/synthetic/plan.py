"""Layout of a town: districts, streets, lots, fields and a river, in metres east and south of the upper left corner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import rotate

from pipeline.training.synthetic.district_types import DISTRICT_TYPES, DistrictType
from pipeline.training.synthetic.houses import Lot

DISTRICT_M = 360.0
"""Mean distance between the centres of districts."""
MAIN_ROAD_M = 11.0
"""Width of the roads between districts."""
KINDS: dict[str, float] = {
    "houses": 0.33,
    "terraces": 0.09,
    "dense": 0.13,
    "blocks": 0.11,
    "works": 0.1,
    "fields": 0.12,
    "woods": 0.06,
    "park": 0.05,
}
"""Kinds of district and their relative frequencies."""


@dataclass(frozen=True, kw_only=True)
class District:
    """One cell of the plan."""

    kind: str
    """A key of `KINDS`."""
    area: shapely.Polygon
    """Its land between the centre lines of the main roads, metres."""
    angle: float
    """Direction of its streets or rows, radians from east towards south."""


@dataclass(frozen=True, kw_only=True)
class Streets:
    """The streets and lots of one district."""

    lines: shapely.Geometry
    """Centre lines of local streets, up to the main roads."""
    free: shapely.Geometry
    """Buildable land: outside the main roads and the river."""
    lots: tuple[Lot, ...]
    """Lots whose centre lies in `free`; parts of them may lie outside."""


def plan_districts(generator: np.random.Generator, height_m: float, width_m: float) -> tuple[District, ...]:
    """Voronoi cells of jittered centres; they cover the scene, and the middle one has houses."""
    rows, cols = (math.ceil(side / DISTRICT_M) + 2 for side in (height_m, width_m))
    ys, xs = np.mgrid[-1 : rows - 1, -1 : cols - 1] + 0.5
    centres = np.stack([xs.ravel(), ys.ravel()], axis=1) + generator.uniform(-0.38, 0.38, (rows * cols, 2))
    frame = shapely.box(0, 0, width_m, height_m).buffer(DISTRICT_M / 2)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(centres * DISTRICT_M))).tolist()
    warp = _warp(generator)
    cells = [warp(cell.intersection(frame)) for cell in cells if cell.intersects(frame)]
    cells.sort(key=lambda cell: cell.centroid.coords[0])
    names, odds = list(KINDS), np.array(list(KINDS.values()))
    kinds = [names[index] for index in generator.choice(len(names), len(cells), p=odds / odds.sum())]
    angles = generator.uniform(0, math.pi / 2, len(cells))
    centre = shapely.Point(width_m / 2, height_m / 2)
    return tuple(
        District(kind="houses" if cell.covers(centre) else kind, area=cell, angle=float(angle))
        for cell, kind, angle in zip(cells, kinds, angles, strict=True)
    )


def _warp(generator: np.random.Generator) -> Callable[[shapely.Polygon], shapely.Polygon]:
    """A smooth deformation of the plane, the same for all cells: straight borders become winding roads."""
    phase = generator.uniform(0, 2 * math.pi, 4)

    def bend(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = xy.T
        east = 11 * np.sin(y / 95 + phase[0]) + 5 * np.sin((x + y) / 43 + phase[1])
        south = 11 * np.sin(x / 105 + phase[2]) + 5 * np.sin((x - y) / 47 + phase[3])
        return np.column_stack([x + east, y + south])

    return lambda cell: shapely.transform(shapely.segmentize(cell, 12.0), bend)


def plan_river(generator: np.random.Generator, height_m: float, width_m: float) -> shapely.Polygon:
    """A winding river across the scene; empty for scenes with a side under 300 m."""
    if min(height_m, width_m) < 300:
        return shapely.Polygon()
    side = max(height_m, width_m)
    s = np.linspace(-0.8, 0.8, 160) * side * 1.2
    bend = sum(
        generator.uniform(20, 60) * np.sin(s * 2 * np.pi / period + generator.uniform(0, 7))
        for period in (900, 420, 230)
    )
    angle, offset = generator.uniform(0, math.pi), generator.uniform(-0.35, 0.35) * side
    x = width_m / 2 + s * math.cos(angle) - (bend + offset) * math.sin(angle)
    y = height_m / 2 + s * math.sin(angle) + (bend + offset) * math.cos(angle)
    return shapely.LineString(np.stack([x, y], axis=1)).buffer(generator.uniform(9, 20))


def plan_streets(district: District, banks: shapely.Geometry, generator: np.random.Generator) -> Streets:
    """Divide a built-up district into streets and lots, in a frame rotated with its streets; not on the `banks`."""
    district_type = DISTRICT_TYPES[district.kind]
    pivot = district.area.centroid
    left, top, right, bottom = rotate(district.area, -district.angle, origin=pivot, use_radians=True).bounds
    lines: list[shapely.LineString] = []
    lots: list[Lot] = []
    crossings = [left, *_walk(left, right, district_type.cross_every, generator)]
    lines += [shapely.LineString([(x, top), (x, bottom)]) for x in crossings]
    y = top - generator.uniform(0, 30)
    while y < bottom:
        lines.append(shapely.LineString([(left, y), (right, y)]))
        depth = generator.uniform(*district_type.lot_depth)
        following = y + 2 * depth + district_type.street_width + 4
        # Two rows of lots lie back to back between this street and the next.
        for front, side in ((y, 1), (following, -1)):
            start = front + side * (district_type.street_width / 2 + 2)
            first = Lot(corner=(crossings[0], start), angle=0.0, side=side, width=0.0, depth=depth)
            lots += _row_of_lots(district_type, crossings, first, generator)
        y = following
    turned = rotate(shapely.MultiLineString(lines), district.angle, origin=pivot, use_radians=True)
    placed = [_turn(lot, district.angle, pivot) for lot in lots]
    land = district.area.difference(banks)
    free = land.buffer(-MAIN_ROAD_M / 2 - 3).difference(banks)
    shapely.prepare(free)
    # A lot is usable if its centre is clear of main roads and banks.
    usable_lots = [lot for lot in placed if shapely.contains_xy(free, *lot.place([(lot.width / 2, lot.depth / 2)])[0])]
    return Streets(lines=turned.intersection(land), free=free, lots=tuple(usable_lots))


def _walk(start: float, stop: float, step: tuple[float, float], generator: np.random.Generator) -> list[float]:
    """Increasing positions from `start` to beyond `stop`, with steps from a range."""
    steps = generator.uniform(*step, math.ceil((stop - start) / step[0]) + 1)
    return [float(x) for x in start + np.cumsum(steps)]


def _row_of_lots(
    district_type: DistrictType, crossings: list[float], first: Lot, generator: np.random.Generator
) -> Iterator[Lot]:
    """Lots like `first`, side by side between cross streets in the rotated frame, with random widths."""
    clear = district_type.street_width / 2 + 2
    for start, stop in pairwise(crossings):
        x = start + clear
        for width in generator.uniform(
            *district_type.lot_width, math.ceil((stop - start) / district_type.lot_width[0])
        ).tolist():
            if x + width > stop - clear:
                break
            yield replace(first, corner=(x, first.corner[1]), width=width)
            x += width


def _turn(lot: Lot, angle: float, pivot: shapely.Point) -> Lot:
    c, s = math.cos(angle), math.sin(angle)
    x, y = lot.corner[0] - pivot.x, lot.corner[1] - pivot.y
    corner = (pivot.x + c * x - s * y, pivot.y + s * x + c * y)
    return replace(lot, corner=corner, angle=angle)


def plan_parcels(district: District, generator: np.random.Generator) -> tuple[shapely.Polygon, ...]:
    """Fields of a farming district: rows of strips with a track between them."""
    pivot = district.area.centroid
    left, top, right, bottom = rotate(district.area, -district.angle, origin=pivot, use_radians=True).bounds
    boxes = []
    y = top
    while y < bottom:
        depth = generator.uniform(60, 150)
        edges = [left, *_walk(left, right, (28, 120), generator)]
        boxes += [shapely.box(a + 0.8, y + 2, b - 0.8, y + depth - 2) for a, b in pairwise(edges)]
        y += depth
    turned = rotate(shapely.MultiPolygon(boxes), district.angle, origin=pivot, use_radians=True)
    inner = district.area.buffer(-8)
    parts = [part.intersection(inner) for part in turned.geoms]
    return tuple(part for part in parts if part.area > 200 and isinstance(part, shapely.Polygon))
