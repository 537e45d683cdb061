"""Synthetic scenes: four-band images of generated towns with known buildings, for the demo, training and tests.

plan            layout in metres: districts, streets, lots, fields, river
district_types  types of built-up district, as a table
houses          one building on one lot: footprint, roof planes, height
materials       reflectances and textures of surfaces
paint           shapes with materials -> a raster of shape numbers and a table
scenery         the painted layout, with buildings and trees
light           sun, shadows, clouds, smooth noise
render          pixels as a sensor would deliver them, in strips, and where tree crowns cover the ground
town            the complete scene: `build_town`, `write_town`
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
