"""Where pixels lie: grids, coordinate reference systems, areas and measures on the ground."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
