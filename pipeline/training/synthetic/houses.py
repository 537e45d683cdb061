"""Synthetic buildings: footprint from rectangles, lit roof planes, and a shadow from the height."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.training.synthetic.light import Sun
from pipeline.training.synthetic.materials import ROOFS, Material

Points = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""`(left, front, right, back)` in metres, in the lot's own axes."""
Plane = tuple[list[tuple[float, float]], tuple[float, float], float]
"""Corners, downslope unit vector (zero: flat) and pitch of a roof plane, in a house's own axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lot:
    """A parcel along a street; its own axes run along the street (x) and away from it (y)."""

    corner: tuple[float, float]
    """The end of the street front, metres east and south."""
    angle: float
    """Direction of the street, radians from east towards south."""
    side: int
    """+1 when the lot lies to the right of the street's direction (south of an eastward one), -1 to the left."""
    width: float
    """Along the street, metres."""
    depth: float
    """Away from the street, metres."""

    def place(self, points: Points | list[tuple[float, float]]) -> Points:
        """Own axes to metres east and south, `(n, 2)`."""
        return np.asarray(points) @ self.axes + self.corner

    @property
    def axes(self) -> Points:
        """Rows are the unit vectors along and away from the street."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, s], [-s * self.side, c * self.side]])

    def box(self, box: Box) -> shapely.Polygon:
        """A rectangle in own axes as a polygon in metres."""
        return shapely.Polygon(self.place(_corners(box)))

    @property
    def area(self) -> shapely.Polygon:
        """The whole lot."""
        return self.box((0, 0, self.width, self.depth))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildingStyle:
    """Distributions of shape, size and roof of the buildings of a district type."""

    shapes: dict[str, float]
    """Ground plans and their relative frequencies: bar, L, T, U, court."""
    roofs: dict[str, float]
    """Roof forms and their relative frequencies: gable, hip, flat, saw."""
    materials: tuple[str, ...]
    """Names in `ROOFS`, equally likely."""
    width: tuple[float, float]
    """Range along the street, metres."""
    depth: tuple[float, float]
    """Range away from the street, metres."""
    height: tuple[float, float]
    """Range of heights, metres."""
    setback: tuple[float, float]
    """Range of distances from the street front, metres."""
    gap: float
    """Minimum distance to the other borders of the lot, metres."""
    turn: float
    """Standard deviation of the rotation against the street, radians."""


@dataclass(frozen=True, kw_only=True)
class Building:
    """One building in scene coordinates."""

    footprint: shapely.Polygon
    """Outline of the roof, which is the reference label, in metres east and south."""
    shadow: shapely.Geometry
    """Area in its shadow; includes the footprint."""
    planes: list[tuple[shapely.Polygon, Material]] = field(default_factory=list)
    """Roof planes and details in painting order, with their illuminated materials."""


def build(lot: Lot, style: BuildingStyle, sun: Sun, generator: np.random.Generator) -> Building | None:
    """A building of this style, or None when the lot is too small for the style's smallest size."""
    turn = float(np.clip(generator.normal(0, style.turn), -0.15, 0.15))
    setback = generator.uniform(*style.setback)
    width, depth = _fitting(lot, style, turn, setback, generator)
    if width < 0.8 * style.width[0] or depth < 0.8 * style.depth[0]:
        return None
    boxes = _boxes(_pick(style.shapes, generator), width, depth, generator)
    slack = lot.width - 2 * style.gap - width * math.cos(turn) - depth * abs(math.sin(turn))
    centre = (lot.width / 2 + generator.uniform(-0.5, 0.5) * max(slack, 0.0), setback + depth / 2)
    at = replace(lot, corner=tuple(lot.place([centre])[0].tolist()), angle=lot.angle + turn)
    return _raise(at, boxes, style, sun, generator)


def _fitting(
    lot: Lot, style: BuildingStyle, turn: float, setback: float, generator: np.random.Generator
) -> tuple[float, float]:
    """Random width and depth, reduced until the rotated rectangle keeps the lot's gaps."""
    width, depth = generator.uniform(*style.width), generator.uniform(*style.depth)
    spill = abs(math.sin(turn))
    width = min(width, lot.width - 2 * style.gap - spill * depth)
    return width, min(depth, lot.depth - setback - style.gap - spill * width)


def _pick(odds: dict[str, float], generator: np.random.Generator) -> str:
    names = list(odds)
    weights = np.array([odds[name] for name in names])
    return names[int(generator.choice(len(names), p=weights / weights.sum()))]


def _boxes(shape: str, width: float, depth: float, generator: np.random.Generator) -> list[Box]:
    """Rectangles whose union is the ground plan, centred on the origin, widest first."""
    left, front, right, back = -width / 2, -depth / 2, width / 2, depth / 2
    if shape == "bar":
        return [(left, front, right, back)]
    wing = generator.uniform(0.35, 0.5) * width
    middle = front + generator.uniform(0.45, 0.6) * depth
    main = (left, front, right, middle)
    if shape == "L":
        at_left = generator.random() < 0.5
        return [main, (left, front, left + wing, back) if at_left else (right - wing, front, right, back)]
    if shape == "T":
        return [main, (-wing / 2, front, wing / 2, back)]
    arm = min(0.3 * width, 12.0)
    arms = [main, (left, front, left + arm, back), (right - arm, front, right, back)]
    if shape == "U":
        return arms
    thick = min(0.28 * depth, 12.0)
    return [(left, front, right, front + thick), (left, back - thick, right, back), *arms[1:]]


def _raise(at: Lot, boxes: list[Box], style: BuildingStyle, sun: Sun, generator: np.random.Generator) -> Building:
    """The building on its ground plan: footprint, shadow, roof planes and details."""
    roof = _pick(style.roofs, generator)
    material = ROOFS[style.materials[int(generator.integers(len(style.materials)))]].varied(generator, 0.12)
    height = generator.uniform(*style.height)
    parts = [at.box(box) for box in boxes]
    footprint = shapely.union_all(parts) if len(parts) > 1 else parts[0]
    offset = sun.shadow(height)
    swept = [
        shapely.convex_hull(shapely.union(part, shapely.transform(part, lambda xy: xy + offset))) for part in parts
    ]
    planes = [
        (shapely.Polygon(at.place(corners)), _lit(material, at, downslope, pitch, sun))
        for box in boxes
        for corners, downslope, pitch in _roof_planes(box, roof)
    ]
    details = list(_details(at, boxes[0], roof, material, generator))
    return Building(footprint=footprint, shadow=shapely.union_all(swept), planes=planes + details)


def _lit(material: Material, at: Lot, downslope: tuple[float, float], pitch: float, sun: Sun) -> Material:
    """The roof's material on one plane: its illumination, and rows of tiles or sheets along the contour lines."""
    direction = np.asarray(downslope) @ at.axes
    lit = material.scaled(sun.brightness((float(direction[0]), float(direction[1])), pitch))
    if not pitch:
        return lit
    return lit.striped(1.7, math.atan2(direction[1], direction[0]) + math.pi / 2, 0.035)


def _roof_planes(box: Box, roof: str) -> list[Plane]:
    forms: dict[str, Callable[[Box], list[Plane]]] = {"flat": _flat, "saw": _saw, "hip": _hip, "gable": _gable}
    return forms[roof](box)


def _flat(box: Box) -> list[Plane]:
    """A parapet and the lower roof inside it, a little darker."""
    left, front, right, back = box
    inset = (left + 0.7, front + 0.7, right - 0.7, back - 0.7)
    return [(_corners(box), (0.0, 0.0), 0.0), (_corners(inset), (0.0, 0.0), 0.3)]


def _gable(box: Box, pitch: float = 0.5, *, ridge_across: bool | None = None) -> list[Plane]:
    """Two planes that meet over the middle; by default the ridge runs along the longer side."""
    left, front, right, back = box
    if ridge_across is None:
        ridge_across = right - left < back - front
    if ridge_across:
        middle = (left + right) / 2
        return [
            (_corners((left, front, middle, back)), (-1.0, 0.0), pitch),
            (_corners((middle, front, right, back)), (1.0, 0.0), pitch),
        ]
    middle = (front + back) / 2
    return [
        (_corners((left, front, right, middle)), (0.0, -1.0), pitch),
        (_corners((left, middle, right, back)), (0.0, 1.0), pitch),
    ]


def _hip(box: Box, pitch: float = 0.45) -> list[Plane]:
    left, front, right, back = box
    half = min(right - left, back - front) / 2
    x0, y0, x1, y1 = left + half, front + half, right - half, back - half
    return [
        ([(left, front), (right, front), (x1, y0), (x0, y0)], (0.0, -1.0), pitch),
        ([(left, back), (right, back), (x1, y1), (x0, y1)], (0.0, 1.0), pitch),
        ([(left, front), (x0, y0), (x0, y1), (left, back)], (-1.0, 0.0), pitch),
        ([(right, front), (x1, y0), (x1, y1), (right, back)], (1.0, 0.0), pitch),
    ]


def _saw(box: Box) -> list[Plane]:
    """Low gables side by side, as on factory halls."""
    left, front, right, back = box
    bays = max(2, round((right - left) / 9))
    edges = np.linspace(left, right, bays + 1).tolist()
    return [
        plane for start, end in pairwise(edges) for plane in _gable((start, front, end, back), 0.16, ridge_across=True)
    ]


def _details(
    at: Lot, box: Box, roof: str, material: Material, generator: np.random.Generator
) -> Iterator[tuple[shapely.Polygon, Material]]:
    """Machines on flat roofs, skylights on halls, windows and solar panels on pitched roofs."""
    left, front, right, back = box
    width, depth = right - left, back - front
    dark = Material(dark=(0.05, 0.055, 0.065, 0.07), light=(0.07, 0.075, 0.09, 0.09))
    if roof == "saw":
        for x in np.arange(left + 5, right - 3, 9.0):
            yield at.box((x, front + 0.15 * depth, x + 1.2, back - 0.15 * depth)), material.scaled(1.35)
        return
    count = generator.poisson(min(0.008 * width * depth, 8)) if roof == "flat" else generator.poisson(0.5)
    for _ in range(count):
        x = generator.uniform(left + 1, max(right - 3, left + 1.1))
        y = generator.uniform(front + 1, max(back - 3, front + 1.1))
        size = generator.uniform(1.0, 2.6, 2)
        detail = (x, y, min(x + size[0], right - 0.8), min(y + size[1], back - 0.8))
        if detail[2] > x and detail[3] > y:
            yield at.box(detail), material.scaled(float(generator.uniform(0.6, 1.6))) if roof == "flat" else dark


def _corners(box: Box) -> list[tuple[float, float]]:
    left, front, right, back = box
    return [(left, front), (right, front), (right, back), (left, back)]
