"""Vectorization: from a mosaic to whole polygons and vector files. Start reading at `pipeline.polygons.stream`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
