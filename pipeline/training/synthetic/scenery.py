"""Scene content: paint ground, streets, lots, cars and roofs of a layout, and place the trees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.training.synthetic.district_types import DISTRICT_TYPES, SHED, DistrictType
from pipeline.training.synthetic.houses import Building, Lot, build
from pipeline.training.synthetic.light import Sun
from pipeline.training.synthetic.materials import CARS, CROPS, GROUND, Material
from pipeline.training.synthetic.paint import PIXEL_M, Painting, burn
from pipeline.training.synthetic.plan import (
    MAIN_ROAD_M,
    District,
    Streets,
    plan_districts,
    plan_parcels,
    plan_river,
    plan_streets,
)

BASES = {"fields": "dirt road", "woods": "forest floor", "park": "lawn", "dense": "soil", "works": "dry grass"}
"""Ground material of a kind of district; meadow where not named."""
TREES_PER_M2 = {"woods": 0.035, "park": 0.003, "fields": 0.00012}
"""Mean number of free-standing trees."""

Trees = NDArray[np.float64]
"""Columns x, y, radius in metres and row of `CROWNS`; `(n, 4)`."""


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """Surfaces, buildings and trees of a scene."""

    painting: Painting
    """Ground and roofs, in painting order."""
    first_roof: int
    """Shapes with this number or a higher one are roofs."""
    ids: NDArray[np.int32]
    """Shape number of each pixel, `(height, width)`."""
    buildings: tuple[Building, ...]
    """All buildings, including those outside the frame."""
    trees: Trees
    """All trees, small ones first."""


def populate(generator: np.random.Generator, sun: Sun, height: int, width: int) -> Scenery:
    """Lay out and paint a scene of `height` x `width` pixels."""
    height_m, width_m = height * PIXEL_M, width * PIXEL_M
    districts = plan_districts(generator, height_m, width_m)
    river = plan_river(generator, height_m, width_m)
    banks = river.buffer(6)
    painting = Painting(ground=GROUND["meadow"])
    trees: list[Trees] = []
    streets: list[tuple[District, Streets]] = []

    # Painted from the bottom up: a later shape covers earlier ones.
    for district in districts:
        base = GROUND[BASES.get(district.kind, "meadow")].varied(generator)
        painting.add(district.area, base)
        if district.kind in DISTRICT_TYPES:
            streets.append((district, plan_streets(district, banks, generator)))
        else:
            free = district.area.buffer(-MAIN_ROAD_M / 2 - 4).difference(banks)
            trees.append(_plant(free, TREES_PER_M2[district.kind], district.kind, generator))
        if district.kind == "fields":
            _paint_fields(painting, plan_parcels(district, generator), district.angle, generator)
    painting.add(banks, GROUND["bank"])
    trees.append(_plant(banks.buffer(4), 0.006, "bank", generator))
    for district, plan in streets:
        trees += _paint_lots(painting, district, plan, generator)

    # Shapes from this number on are water, roads and roofs, where no tree stands.
    first_hard = len(painting.shapes) + 1
    painting.add(river, GROUND["water"], "water")
    _paint_streets(painting, districts, streets, generator)
    buildings = _paint_buildings(painting, streets, sun, generator)

    # Roof planes are the last shapes; numbers of shapes start at 1.
    first_roof = len(painting.shapes) + 1 - sum(len(building.planes) for building in buildings)
    ids = burn(painting.shapes, height, width)
    return Scenery(
        painting=painting,
        first_roof=first_roof,
        ids=ids,
        buildings=buildings,
        trees=_keep_rooted(np.concatenate(trees), ids, first_hard),
    )


def _paint_fields(
    painting: Painting, parcels: Sequence[shapely.Polygon], angle: float, generator: np.random.Generator
) -> None:
    for parcel in parcels:
        crop = CROPS[int(generator.integers(len(CROPS)))].varied(generator, 0.08)
        period, depth = generator.uniform(1.8, 4.5), generator.uniform(0.02, 0.16)
        painting.add(parcel, crop.striped(period, angle + math.pi / 2 * generator.integers(2), depth))


def _paint_lots(painting: Painting, district: District, plan: Streets, generator: np.random.Generator) -> list[Trees]:
    """Yards with patios, pools and garden beds; returns the garden trees."""
    district_type = DISTRICT_TYPES[district.kind]
    yards = [GROUND[name] for name in district_type.yards]
    trees = []
    for lot in plan.lots:
        yard = yards[int(generator.integers(len(yards)))].varied(generator, 0.12)
        painting.add(lot.area.intersection(plan.free), yard)
        for _ in range(generator.poisson(1.2)):
            name = ("concrete", "soil", "meadow", "gravel", "dry grass")[int(generator.integers(5))]
            painting.add(_patch(lot, (2, 7), generator), GROUND[name].varied(generator))
        if district.kind == "houses" and generator.random() < 0.05:
            painting.add(_patch(lot, (3, 6), generator), GROUND["pool"], "water")
        trees.append(_in_lot(lot, district_type.trees_per_lot, generator))
    return trees


def _patch(lot: Lot, sizes: tuple[float, float], generator: np.random.Generator) -> shapely.Polygon:
    """A small rectangle at a random position in the back half of the lot."""
    width, depth = generator.uniform(*sizes, 2)
    x, y = generator.uniform(0, max(lot.width - width, 0.1)), generator.uniform(0.3 * lot.depth, 0.98 * lot.depth)
    return lot.box((x, y, min(x + width, lot.width), min(y + depth, lot.depth)))


def _in_lot(lot: Lot, mean: float, generator: np.random.Generator) -> Trees:
    count = int(generator.poisson(mean))
    places = lot.place(generator.uniform(0.04, 0.96, (count, 2)) * (lot.width, lot.depth))
    radii = generator.uniform(1.2, 4.2, count)
    trees: Trees = np.column_stack([places, radii, generator.integers(0, 4, count)])
    return trees


def _plant(area: shapely.Geometry, per_m2: float, kind: str, generator: np.random.Generator) -> Trees:
    """Trees at random positions in an area; crowns of a wood are larger."""
    if area.is_empty:
        return np.empty((0, 4))

    # The bounding box is planted at the given density, then clipped to the area.
    left, top, right, bottom = area.bounds
    count = int(generator.poisson(per_m2 * (right - left) * (bottom - top)))
    places = generator.uniform((left, top), (right, bottom), (count, 2))
    radii = generator.uniform(2.0, 4.6, count) if kind == "woods" else generator.uniform(1.5, 4.5, count)
    species = generator.choice(4, count, p=(0.5, 0.25, 0.2, 0.05))
    shapely.prepare(area)
    inside = shapely.contains_xy(area, places)
    trees: Trees = np.column_stack([places, radii, species])[inside]
    return trees


def _keep_rooted(trees: Trees, ids: NDArray[np.int32], first_hard: int) -> Trees:
    """Trees that do not stand in water, on a road or under a roof, sorted by size, the small ones first."""
    rows, cols = (trees[:, 1] // PIXEL_M).astype(int), (trees[:, 0] // PIXEL_M).astype(int)
    height, width = ids.shape

    # Crowns of trees up to 20 px outside the frame can reach into it.
    near = (rows > -20) & (rows < height + 20) & (cols > -20) & (cols < width + 20)
    ground = ids[np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1)]
    standing_trees: Trees = trees[near & (ground < first_hard)]
    order = np.argsort(standing_trees[:, 2], kind="stable")
    return standing_trees[order, :]


def _paint_streets(
    painting: Painting,
    districts: Sequence[District],
    streets: Sequence[tuple[District, Streets]],
    generator: np.random.Generator,
) -> None:
    """Local streets with pavements, then the main roads with markings, then the cars on both."""
    for district, plan in streets:
        district_type = DISTRICT_TYPES[district.kind]
        half = district_type.street_width / 2
        if district_type.street != "dirt road":
            painting.add(plan.lines.buffer(half + 1.5, cap_style="flat"), GROUND["concrete"].varied(generator, 0.06))
        painting.add(plan.lines.buffer(half, cap_style="flat"), GROUND[district_type.street].varied(generator), "road")
        for lot in plan.lots:
            if generator.random() < 0.7:
                x = generator.uniform(0.3, max(lot.width - 3.5, 0.4))
                drive = lot.box((x, -2.2, x + 3.0, 0.3 * lot.depth))
                painting.add(drive, GROUND["concrete" if generator.random() < 0.5 else "gravel"].varied(generator))
    borders = shapely.line_merge(shapely.union_all([district.area.exterior for district in districts]))
    painting.add(borders.buffer(MAIN_ROAD_M / 2 + 2), GROUND["concrete"].varied(generator, 0.06))
    painting.add(borders.buffer(MAIN_ROAD_M / 2), GROUND["asphalt"].varied(generator, 0.06), "road")
    for line in shapely.get_parts(borders):
        painting.extend(*_dashes(line), "road")
    painting.extend(*_cars(borders, 34.0, generator), "car")
    for _, plan in streets:
        painting.extend(*_cars(plan.lines, 42.0, generator), "car")


def _dashes(line: shapely.LineString) -> tuple[list[shapely.Polygon], list[Material]]:
    """The dashed centre line: 4 m painted, 8 m not."""
    starts = np.arange(2, max(line.length - 6, 2), 12.0)
    ends = [shapely.get_coordinates(shapely.line_interpolate_point(line, at)) for at in (starts, starts + 4)]
    dashes = shapely.buffer(shapely.linestrings(np.stack(ends, 1)), 0.26, cap_style="flat")
    return list(dashes), [GROUND["marking"]] * len(dashes)


def _cars(
    lines: shapely.Geometry, every_m: float, generator: np.random.Generator
) -> tuple[list[shapely.Polygon], list[Material]]:
    """Cars to the right of the lines, one per `every_m` on average."""
    boxes: list[shapely.Polygon] = []
    for line in shapely.get_parts(lines):
        if not isinstance(line, shapely.LineString):
            continue
        at = generator.uniform(0, line.length, generator.poisson(line.length / every_m))
        here = shapely.get_coordinates(shapely.line_interpolate_point(line, at))
        there = shapely.get_coordinates(shapely.line_interpolate_point(line, at + 0.5))
        for (x, y), (dx, dy) in zip(here, there - here, strict=True):
            lane = Lot(corner=(x, y), angle=math.atan2(dy, dx), side=1, width=0, depth=0)
            length = generator.uniform(3.9, 5.0)
            boxes.append(lane.box((0, 0.9, length, 2.8)))
    paints = [CARS[index] for index in generator.integers(0, len(CARS), len(boxes))]
    return boxes, [Material(dark=paint, light=paint) for paint in paints]


def _paint_buildings(
    painting: Painting, streets: Sequence[tuple[District, Streets]], sun: Sun, generator: np.random.Generator
) -> tuple[Building, ...]:
    """Place the buildings that fit on the free land, and paint their roofs last."""
    buildings: list[Building] = []
    for district, plan in streets:
        shapely.prepare(plan.free)
        for lot in plan.lots:
            if generator.random() < DISTRICT_TYPES[district.kind].built:
                stand = _build_on_lot(lot, DISTRICT_TYPES[district.kind], sun, generator)
                buildings += [each for each in stand if plan.free.contains_properly(each.footprint)]
    for building in buildings:
        for shape, material in building.planes:
            painting.add(shape, material, "building")
    return tuple(buildings)


def _build_on_lot(
    lot: Lot, district_type: DistrictType, sun: Sun, generator: np.random.Generator
) -> Iterator[Building]:
    """The building of a lot and, at its back border, sometimes a shed at least two metres away."""
    house = build(lot, district_type.style, sun, generator)
    if house is None:
        return
    yield house
    if generator.random() < district_type.sheds:
        back = lot.place([(lot.width, lot.depth)])[0]
        corner = (float(back[0]), float(back[1]))
        behind = replace(lot, corner=corner, angle=lot.angle + math.pi, depth=0.3 * lot.depth)
        shed = build(behind, SHED, sun, generator)
        if shed is not None and shed.footprint.distance(house.footprint) > 2.0:
            yield shed
