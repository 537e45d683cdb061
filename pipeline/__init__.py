"""Scenemill: georeferenced scenes in; seamless probability mosaics and whole polygons out.

The public names are imported on first use (SPEC 1), so that `import pipeline` costs nothing and does not import torch.
Start reading at `pipeline.segment`.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
