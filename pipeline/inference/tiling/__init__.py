"""How a scene is cut: tiles, regions, chunks and strips."""
