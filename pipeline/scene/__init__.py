"""Scenes as they are read: files, bands, alignment, validity. Start reading at `pipeline.scene.describe`."""
