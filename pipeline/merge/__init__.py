"""The polygons of all scenes as one file. Start reading at `pipeline.merge.run`."""
