"""STAC as a source: walks of static catalogs, searches of APIs, items and their assets."""
