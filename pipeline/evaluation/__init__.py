"""Evaluation of predictions against labels: scores with intervals, error maps and a page. Start at `evaluate`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
