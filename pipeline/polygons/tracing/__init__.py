"""Raster tracing: connected components of a block and their outlines."""
