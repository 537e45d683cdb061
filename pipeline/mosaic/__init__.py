"""Mosaics of levels: written strip by strip, read back, with overviews as Cloud-Optimized GeoTIFF."""
