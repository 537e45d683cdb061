"""Command line: one module for each group of commands. Start reading at `pipeline.cli.app`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
