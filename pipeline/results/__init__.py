"""Results of a run in a folder or an object store, published atomically. Start with `results`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
