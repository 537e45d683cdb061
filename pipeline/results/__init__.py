"""What a scene leaves behind, and how it appears at once. Start reading at `pipeline.results.local`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
