"""District types: lot and street sizes, surfaces and buildings of each type of built-up district."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.training.synthetic.houses import BuildingStyle


@dataclass(frozen=True, kw_only=True)
class DistrictType:
    """Streets, lots and buildings of a type of built-up district; lengths in metres, ranges (low, high)."""

    style: BuildingStyle
    """The building of a lot."""
    lot_width: tuple[float, float]
    """Along the street."""
    lot_depth: tuple[float, float]
    """Away from the street; one value per block."""
    street_width: float
    """Carriageway of the local streets."""
    street: str
    """Surface of the local streets, a name in `GROUND`."""
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

DISTRICT_TYPES: dict[str, DistrictType] = {
    "houses": DistrictType(
        style=BuildingStyle(
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
    "terraces": DistrictType(
        style=BuildingStyle(
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
    "dense": DistrictType(
        style=BuildingStyle(
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
    "blocks": DistrictType(
        style=BuildingStyle(
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
    "works": DistrictType(
        style=BuildingStyle(
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

SHED = BuildingStyle(
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
