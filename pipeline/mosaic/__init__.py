"""Mosaics of levels: written strip by strip, read back, with overviews as Cloud-Optimized GeoTIFF."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
