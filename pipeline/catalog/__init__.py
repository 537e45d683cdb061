"""Catalogs: lists, tables and STAC become scenes to run. Start reading at `pipeline.catalog.read`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
