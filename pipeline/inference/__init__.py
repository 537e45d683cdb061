"""Tiles through a network and back into a mosaic. Start reading at `pipeline.inference.engine`."""
