"""Models: cards, checkpoints, networks, exported networks and predictors."""
