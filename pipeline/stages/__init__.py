"""The stages of one scene: what goes in, what was there before, what comes out."""
