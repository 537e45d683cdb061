"""Where things are: districts, streets, lots, fields, a river, in metres east and south of the upper left corner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import rotate

from pipeline.town.houses import Form, Lot

DISTRICT_M = 360.0
"""Mean distance between the centres of districts."""
MAIN_ROAD_M = 11.0
"""Width of the roads between districts."""


@dataclass(frozen=True, kw_only=True)
class Quarter:
    """How a kind of built-up district is cut into streets and lots; lengths in metres, ranges (low, high)."""

    form: Form
    """What stands on a lot."""
    lot_width: tuple[float, float]
    """Along the street."""
    lot_depth: tuple[float, float]
    """Away from the street; one value per block."""
    street_width: float
    """Carriageway of the local streets."""
    street: str
    """Their surface, a name in `GROUND`."""
    cross_every: tuple[float, float]
    """Distance between cross streets."""
    yards: tuple[str, ...]
    """Surfaces of lots, names in `GROUND`."""
    built: float
    """Share of lots with a building."""
    trees_per_lot: float
    """Mean number of garden trees."""
    sheds: float = 0.0
    """Share of lots with a shed at the back."""


PITCHED = {"gable": 0.6, "hip": 0.3, "flat": 0.1}

QUARTERS: dict[str, Quarter] = {
    "houses": Quarter(
        form=Form(
            shapes={"bar": 0.5, "L": 0.32, "T": 0.18},
            roofs=PITCHED,
            materials=("red tiles", "brown tiles", "earth tiles", "slate", "bitumen", "dull metal", "red tiles"),
            width=(9, 17),
            depth=(8.5, 14),
            height=(4, 8),
            setback=(3, 6),
            gap=1.4,
            turn=0.03,
        ),
        lot_width=(13, 22),
        lot_depth=(22, 30),
        street_width=6.0,
        street="asphalt",
        cross_every=(90, 160),
        yards=("lawn", "lawn", "meadow", "dry grass", "gravel"),
        built=0.93,
        trees_per_lot=1.5,
        sheds=0.4,
    ),
    "terraces": Quarter(
        form=Form(
            shapes={"bar": 0.8, "L": 0.2},
            roofs={"gable": 0.75, "flat": 0.25},
            materials=("brown tiles", "red tiles", "slate", "bitumen", "gravel roof"),
            width=(26, 52),
            depth=(9, 12),
            height=(7, 10),
            setback=(3, 5),
            gap=2.0,
            turn=0.0,
        ),
        lot_width=(34, 58),
        lot_depth=(22, 27),
        street_width=7.0,
        street="asphalt",
        cross_every=(110, 190),
        yards=("lawn", "lawn", "concrete", "dry grass"),
        built=0.95,
        trees_per_lot=2.0,
    ),
    "dense": Quarter(
        form=Form(
            shapes={"bar": 0.75, "L": 0.25},
            roofs={"gable": 0.55, "flat": 0.45},
            materials=(
                *("rusty metal", "dull metal", "earth tiles", "grey concrete") * 2,
                "bright metal",
                "blue metal",
            ),
            width=(6, 12),
            depth=(6, 12),
            height=(3, 6),
            setback=(0.8, 1.8),
            gap=0.8,
            turn=0.05,
        ),
        lot_width=(8, 14),
        lot_depth=(10, 15),
        street_width=4.5,
        street="dirt road",
        cross_every=(45, 90),
        yards=("soil", "soil", "gravel", "dry grass"),
        built=0.94,
        trees_per_lot=0.35,
    ),
    "blocks": Quarter(
        form=Form(
            shapes={"bar": 0.45, "L": 0.2, "U": 0.2, "court": 0.15},
            roofs={"flat": 0.85, "hip": 0.15},
            materials=("gravel roof", "grey concrete", "white membrane", "bitumen", "planted", "red tiles"),
            width=(32, 58),
            depth=(16, 46),
            height=(12, 24),
            setback=(5, 9),
            gap=4.0,
            turn=0.0,
        ),
        lot_width=(52, 80),
        lot_depth=(52, 66),
        street_width=8.5,
        street="asphalt",
        cross_every=(140, 220),
        yards=("lawn", "lawn", "old asphalt", "concrete"),
        built=0.88,
        trees_per_lot=7.0,
    ),
    "works": Quarter(
        form=Form(
            shapes={"bar": 0.75, "L": 0.25},
            roofs={"flat": 0.5, "saw": 0.5},
            materials=("white membrane", "bright metal", "dull metal", "gravel roof", "bitumen", "green metal"),
            width=(30, 74),
            depth=(20, 50),
            height=(7, 13),
            setback=(6, 14),
            gap=4.0,
            turn=0.0,
        ),
        lot_width=(58, 95),
        lot_depth=(55, 75),
        street_width=9.0,
        street="old asphalt",
        cross_every=(160, 260),
        yards=("concrete", "old asphalt", "gravel", "asphalt"),
        built=0.86,
        trees_per_lot=1.0,
    ),
}
"""Kinds of built-up district."""

SHED = Form(
    shapes={"bar": 1.0},
    roofs={"gable": 0.5, "flat": 0.5},
    materials=("dull metal", "brown tiles", "bitumen", "grey concrete"),
    width=(3, 6.5),
    depth=(3, 6.5),
    height=(2.3, 3.2),
    setback=(0.9, 1.6),
    gap=0.9,
    turn=0.02,
)
"""Garages and sheds behind houses."""

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
"""Kinds of district and their odds."""


@dataclass(frozen=True, kw_only=True)
class District:
    """One cell of the plan."""

    kind: str
    """A key of `KINDS`."""
    area: shapely.Polygon
    """Its land between the middle lines of the main roads, metres."""
    angle: float
    """Direction of its streets or rows, radians from east towards south."""


@dataclass(frozen=True, kw_only=True)
class Streets:
    """The streets and lots of one district."""

    lines: shapely.Geometry
    """Middle lines of local streets, up to the main roads."""
    free: shapely.Geometry
    """Land that may be built on: off the main roads and the river."""
    lots: tuple[Lot, ...]
    """Lots whose middle lies in `free`; parts of them may not."""


def plan_districts(generator: np.random.Generator, height_m: float, width_m: float) -> tuple[District, ...]:
    """Cells around jittered centres; together they cover the scene, and the middle one has houses."""
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
    """A gentle bending of the plane, the same for all cells: straight borders become winding roads."""
    phase = generator.uniform(0, 2 * math.pi, 4)

    def bend(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = xy.T
        east = 11 * np.sin(y / 95 + phase[0]) + 5 * np.sin((x + y) / 43 + phase[1])
        south = 11 * np.sin(x / 105 + phase[2]) + 5 * np.sin((x - y) / 47 + phase[3])
        return np.column_stack([x + east, y + south])

    return lambda cell: shapely.transform(shapely.segmentize(cell, 12.0), bend)


def plan_river(generator: np.random.Generator, height_m: float, width_m: float) -> shapely.Polygon:
    """A winding river that crosses the scene somewhere; scenes with a side under 300 m have none."""
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
    """Cut a built-up district into streets and lots, in a frame turned with its streets.

    Args:
        district: one whose kind is in `QUARTERS`.
        banks: the river with its banks, which stays free.
        generator: draws the sizes.
    """
    quarter = QUARTERS[district.kind]
    pivot = district.area.centroid
    left, top, right, bottom = rotate(district.area, -district.angle, origin=pivot, use_radians=True).bounds
    lines: list[shapely.LineString] = []
    lots: list[Lot] = []
    crossings = [left, *_walk(left, right, quarter.cross_every, generator)]
    lines += [shapely.LineString([(x, top), (x, bottom)]) for x in crossings]
    y = top - generator.uniform(0, 30)
    while y < bottom:
        lines.append(shapely.LineString([(left, y), (right, y)]))
        depth = generator.uniform(*quarter.lot_depth)
        following = y + 2 * depth + quarter.street_width + 4
        for front, side in ((y, 1), (following, -1)):
            start = front + side * (quarter.street_width / 2 + 2)
            lots += _row_of_lots(quarter, crossings, start, side=side, depth=depth, generator=generator)
        y = following
    turned = rotate(shapely.MultiLineString(lines), district.angle, origin=pivot, use_radians=True)
    placed = [_turn(lot, district.angle, pivot) for lot in lots]
    land = district.area.difference(banks)
    free = land.buffer(-MAIN_ROAD_M / 2 - 3).difference(banks)
    shapely.prepare(free)
    kept = [lot for lot in placed if shapely.contains_xy(free, *lot.place([(lot.width / 2, lot.depth / 2)])[0])]
    return Streets(lines=turned.intersection(land), free=free, lots=tuple(kept))


def _walk(start: float, stop: float, step: tuple[float, float], generator: np.random.Generator) -> list[float]:
    """Increasing positions from `start` to beyond `stop`, with steps from a range."""
    steps = generator.uniform(*step, math.ceil((stop - start) / step[0]) + 1)
    return [float(x) for x in start + np.cumsum(steps)]


def _row_of_lots(
    quarter: Quarter, crossings: list[float], front: float, *, side: int, depth: float, generator: np.random.Generator
) -> Iterator[Lot]:
    """Lots side by side between cross streets, on one side of a street, in the turned frame."""
    clear = quarter.street_width / 2 + 2
    for start, stop in pairwise(crossings):
        x = start + clear
        for width in generator.uniform(*quarter.lot_width, math.ceil((stop - start) / quarter.lot_width[0])):
            if x + width > stop - clear:
                break
            yield Lot(corner=(x, front), angle=0.0, side=side, width=float(width), depth=depth)
            x += float(width)


def _turn(lot: Lot, angle: float, pivot: shapely.Point) -> Lot:
    c, s = math.cos(angle), math.sin(angle)
    x, y = lot.corner[0] - pivot.x, lot.corner[1] - pivot.y
    corner = (pivot.x + c * x - s * y, pivot.y + s * x + c * y)
    return Lot(corner=corner, angle=angle, side=lot.side, width=lot.width, depth=lot.depth)


def plan_parcels(district: District, generator: np.random.Generator) -> tuple[shapely.Polygon, ...]:
    """Fields of a farming district: strips in rows, a track's width apart."""
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
