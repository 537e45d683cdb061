"""What a training leaves to look at: curves, overlays and the page of the card."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
