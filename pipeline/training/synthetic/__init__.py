"""Invented towns: realistic four-band scenes whose true buildings are known, for the demo, training and tests.

plan      districts, streets, lots, fields, river, trees: where things are, in metres
quarters  kinds of built-up district, as a table
houses    one building on one lot: footprint, roof faces, height
looks     reflectances and textures of surfaces
paint     shapes and looks -> a raster of shape numbers and a table
light     sun, shadows, clouds, smooth noise
render    strips of pixels as a sensor would deliver them, and where leaves hide the ground
town      the whole: `build_town`, `write_town`
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
