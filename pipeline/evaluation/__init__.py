"""Evaluation: results and labels in, scores with intervals and a page out. Start reading at `evaluate`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
