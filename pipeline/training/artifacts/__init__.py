"""What a training leaves to look at: curves, overlays and the page of the card."""
