"""Our own networks and the registry that builds them."""
