"""Regions on a Dask cluster. Start reading at `pipeline.distribute.connect`."""
