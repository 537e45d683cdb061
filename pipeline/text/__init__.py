"""Text from files: unprintable characters as escapes, addresses without secrets, bounded readers of YAML and JSON."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
