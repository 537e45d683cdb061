"""Many scenes, each on its own. Start reading at `pipeline.run.scenes`."""
