"""STAC Items become rows: which files are the scene, where it lies, when it was taken, and where the Item is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.catalog.layers import usable_footprint
from pipeline.catalog.rows import Row
from pipeline.catalog.spec import CatalogSpec
from pipeline.catalog.stac.assets import find_band_files, unscaled
from pipeline.catalog.stac.links import Place, linked_place
from pipeline.errors import SceneError
from pipeline.grid import FULL_CIRCLE_DEG
from pipeline.scene import parse_date
from pipeline.storage import sanitize_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pystac import Item

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What JSON of another shape than an Item's makes Python raise."""
LONLAT = "OGC:CRS84"
"""What the footprints of Items are in."""
CLOUDS = "eo:cloud_cover"
"""Property of an Item: percent of the scene under clouds."""


@dataclass(frozen=True, kw_only=True)
class ItemRules:
    """What Items are held against."""

    spec: CatalogSpec
    """The settings of the catalog."""
    drivers: tuple[str, ...]
    """GDAL drivers that may open scenes, the preferred first."""


def item_row(content: Mapping[str, Any], place: Place, rules: ItemRules, *, label: str, itself: bool) -> Row:
    """The row of an Item, at fault where it cannot be used.

    Args:
        content: its JSON.
        place: where the document lies that it stands in.
        rules: which assets count.
        label: its place, for messages.
        itself: whether the document is the Item; else it stands among others, and its links count from where it says
            that it lies.
    """
    try:
        item = _parse(content)
        known = Row(
            place=label, id=sanitize_name(item.id), footprint=_footprint(item), date=_date(item), clouds=_clouds(item)
        )
        return _filled(known, item, place if itself else _own_place(item, place), place, rules)
    except MALFORMED as error:
        reason = f"no valid STAC Item: {type(error).__name__}: {error}; correct it"
        return Row(place=label, error=reason)


def _parse(content: Mapping[str, Any]) -> Item:
    """The Item that JSON of any STAC version says."""
    from pystac import Item
    from pystac.errors import STACError, STACTypeError

    try:
        item = Item.from_dict(dict(content), preserve_dict=False)
    except (STACError, STACTypeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(content["id"], str):
        raise TypeError(f"its id is {item.id!r}")
    return item


def _filled(known: Row, item: Item, own: Place | None, place: Place, rules: ItemRules) -> Row:
    """The row with its files or its fault."""
    try:
        found = find_band_files(item, own or place, drivers=rules.drivers, chosen=rules.spec.assets)
    except SceneError as error:
        return replace(known, error=str(error))
    files = found.files if rules.spec.item_scales else tuple(unscaled(file) for file in found.files)
    return replace(known, path=found.location, files=files, source=own.address if own else None)


def _own_place(item: Item, place: Place) -> Place | None:
    """Where an Item among others lies by its link `self`; None where it has none that leads anywhere."""
    href = item.get_self_href()
    try:
        return None if href is None else linked_place(href, place)
    except SceneError:
        return None


def _date(item: Item) -> str:
    """When it was taken, of a span of time its end; empty when unknown."""
    moment = item.datetime or item.common_metadata.end_datetime
    return "" if moment is None else parse_date(moment.isoformat()) or ""


def _clouds(item: Item) -> float:
    """Percent of it under clouds, NaN where it does not say."""
    cover = item.properties.get(CLOUDS)
    if isinstance(cover, bool) or not isinstance(cover, int | float):
        return math.nan
    return float(cover)


def _footprint(item: Item) -> shapely.Geometry | None:
    """Where it lies, by its geometry, else its box; None where neither says it."""
    drawn = item.geometry or (_ring(item.bbox) if item.bbox else None)
    if not drawn:
        return None
    with np.errstate(over="ignore"):
        return usable_footprint(shapely.from_geojson(json.dumps(drawn), on_invalid="ignore"), LONLAT)


def _ring(bbox: Sequence[float]) -> Mapping[str, object] | None:
    """A box of four or six numbers as a polygon; one over the antimeridian goes on past 180 degrees."""
    half = len(bbox) // 2
    left, bottom, right, top = bbox[0], bbox[1], bbox[half], bbox[half + 1]
    right += FULL_CIRCLE_DEG if left > right else 0
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    return {"type": "Polygon", "coordinates": [ring]}
