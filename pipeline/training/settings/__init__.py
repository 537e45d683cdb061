"""Training settings, one module per section."""
