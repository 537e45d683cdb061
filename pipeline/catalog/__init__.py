"""Lists, tables and STAC catalogs in, scenes to run out. Start reading at `pipeline.catalog.read`."""
