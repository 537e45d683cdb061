"""STAC sources: static catalogs, API searches, Items and their assets."""
