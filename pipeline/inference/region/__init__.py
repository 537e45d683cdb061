"""One region of a scene from window to mosaic. Start reading at `pipeline.inference.region.run`."""
