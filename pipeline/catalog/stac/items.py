"""STAC Items as catalog rows: files, footprint, acquisition date and cloud cover of a scene."""

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
from pipeline.catalog.stac.assets import find_band_files, without_scaling
from pipeline.catalog.stac.links import DocumentLocation, follow_link
from pipeline.errors import SceneError
from pipeline.grid import FULL_CIRCLE_DEG
from pipeline.scene import parse_date
from pipeline.storage import sanitize_name
from pipeline.text import without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pystac import Item

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""Exceptions that JSON without the structure of an Item causes, or with too deep a structure."""
ITEM_CRS = "OGC:CRS84"
"""CRS of the footprints of Items."""
CLOUDS = "eo:cloud_cover"
"""Property of an Item: cloud cover in percent."""


@dataclass(frozen=True, kw_only=True)
class ItemRules:
    """How the files of an Item are chosen."""

    spec: CatalogSpec
    drivers: tuple[str, ...]
    """Allowed GDAL drivers, the preferred first."""


def item_row(
    content: Mapping[str, Any], document: DocumentLocation, rules: ItemRules, *, label: str, itself: bool
) -> Row:
    """The row of an Item, with an error if it cannot be used; messages begin with `label`.

    `itself`: the document is the Item; otherwise it lists the Item, whose links are relative to its own `self` link.
    """
    try:
        item = _parse(content)
        row = Row(
            location=label,
            id=sanitize_name(item.id),
            footprint=_footprint(item),
            date=_date(item),
            clouds=_clouds(item),
            rules=document.link_rules,
        )
        return _with_files(row, item, document if itself else _self_location(item, document), document, rules)
    except MALFORMED as error:
        return malformed_row(label, error)


def malformed_row(label: str, error: Exception) -> Row:
    """The row of an Item that raised one of `MALFORMED`."""
    return Row(location=label, error=f"invalid STAC Item: {type(error).__name__}: {error}; correct it")


def _parse(content: Mapping[str, Any]) -> Item:
    """The Item in JSON of any STAC version."""
    from pystac import Item
    from pystac.errors import STACError, STACTypeError

    try:
        item = Item.from_dict(dict(content), preserve_dict=False)
    except (STACError, STACTypeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(content["id"], str):
        raise TypeError(f"its id is {item.id!r}")
    return item


def _with_files(
    row: Row, item: Item, own: DocumentLocation | None, document: DocumentLocation, rules: ItemRules
) -> Row:
    """The row with its files or its error; `own` is the location of the Item, if it is known."""
    try:
        found = find_band_files(item, own or document, drivers=rules.drivers, keys=rules.spec.assets)
    except SceneError as error:
        return replace(row, error=str(error))
    files = found.files if rules.spec.item_scales else tuple(without_scaling(file) for file in found.files)
    return replace(row, path=found.location, files=files, source=without_secrets(own.address) if own else None)


def _self_location(item: Item, document: DocumentLocation) -> DocumentLocation | None:
    """The location of an Item by its `self` link; None without a usable one."""
    href = item.get_self_href()
    try:
        return None if href is None else follow_link(href, document)
    except SceneError:
        return None


def _date(item: Item) -> str:
    """Acquisition date, or the end of the time span; empty if unknown."""
    moment = item.datetime or item.common_metadata.end_datetime
    return "" if moment is None else parse_date(moment.isoformat()) or ""


def _clouds(item: Item) -> float:
    """Cloud cover in percent, NaN if unknown."""
    cover = item.properties.get(CLOUDS)
    if isinstance(cover, bool) or not isinstance(cover, int | float):
        return math.nan
    return float(cover)


def _footprint(item: Item) -> shapely.Geometry | None:
    """Footprint by geometry, else by box; None without either."""
    geometry = item.geometry or (_box_polygon(item.bbox) if item.bbox else None)
    if not geometry:
        return None
    with np.errstate(over="ignore"):
        return usable_footprint(shapely.from_geojson(json.dumps(geometry), on_invalid="ignore"), ITEM_CRS)


def _box_polygon(bbox: Sequence[float]) -> Mapping[str, object] | None:
    """A box of four or six numbers as a polygon; across the antimeridian its longitudes exceed 180 degrees."""
    half = len(bbox) // 2
    left, bottom, right, top = bbox[0], bbox[1], bbox[half], bbox[half + 1]
    right += FULL_CIRCLE_DEG if left > right else 0
    ring = [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]
    return {"type": "Polygon", "coordinates": [ring]}
