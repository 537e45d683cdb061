"""HTTP requests to web servers, ours and those of GDAL, under one policy of hosts."""
