"""Training of segmentation networks: scenes and labels in, a checkpoint with its model card out. Start at `loop`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
