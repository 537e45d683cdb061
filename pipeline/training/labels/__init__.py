"""Labels as polygons or masks, and the scenes they belong to."""
