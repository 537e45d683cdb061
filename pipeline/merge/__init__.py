"""The polygons of all scenes as one file. Start reading at `pipeline.merge.run`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
