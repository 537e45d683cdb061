"""What a scene leaves behind, and how it appears at once. Start reading at `pipeline.results.local`."""
