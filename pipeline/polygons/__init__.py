"""Masks in, whole polygons out. Start reading at `pipeline.polygons.stream`."""
