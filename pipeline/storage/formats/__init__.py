"""File formats: the GDAL drivers that may open files, and the sidecars and vector files checked before they do."""
