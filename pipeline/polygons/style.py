"""QGIS style (QML) of the polygons: one translucent colour per class."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement, tostring

from pipeline.mosaic import class_colour
from pipeline.text import printable

FILL_ALPHA = 90
"""Opacity of fills, 0..255: the image below stays visible."""
OUTLINE_MM = 0.4
"""Width of outlines on screen and paper."""


def layer_style(classes: Mapping[int, str]) -> str:
    """QML that colours polygons by their attribute `class`.

    Args:
        classes: class value -> name, in the order of the legend.
    """
    root = Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr="class", symbollevels="0", forceraster="0"
    )
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for index, name in enumerate(classes.values()):
        text = printable(name)  # XML has no control characters, not even as entities
        SubElement(categories, "category", value=text, symbol=str(index), label=text, render="true", type="string")
        symbol = SubElement(symbols, "symbol", type="fill", name=str(index), alpha="1", clip_to_extent="1")
        _fill(symbol, class_colour(index))
    SubElement(root, "layerGeometryType").text = "2"
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return doctype + tostring(root, encoding="unicode")


def _fill(symbol: Element, colour: tuple[int, int, int]) -> None:
    red, green, blue = colour
    properties = {
        "color": f"{red},{green},{blue},{FILL_ALPHA}",
        "style": "solid",
        "outline_color": f"{red * 3 // 5},{green * 3 // 5},{blue * 3 // 5},255",
        "outline_style": "solid",
        "outline_width": str(OUTLINE_MM),
        "outline_width_unit": "MM",
        "joinstyle": "bevel",
    }
    layer = SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
    options = SubElement(layer, "Option", type="Map")
    for key, value in properties.items():
        SubElement(options, "Option", name=key, type="QString", value=value)
        SubElement(layer, "prop", k=key, v=value)  # QGIS before 3.26 reads these
