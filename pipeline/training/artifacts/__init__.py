"""Artifacts of a training run: curves, overlay pictures and the model card's page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
