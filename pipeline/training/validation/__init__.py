"""Validation of a network: confusion counts, pixel metrics, calibration and the choice of the threshold."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
