"""Inference: tiles through a network, blended into a mosaic. Start reading at `pipeline.inference.engine`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
