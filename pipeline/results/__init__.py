"""Results of scenes in a folder or an object store, published atomically. Start reading at `pipeline.results.local`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
