"""Where pixels lie: grids, coordinate reference systems, areas and measures on the ground."""
