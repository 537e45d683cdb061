"""Predictors: a network on a device, ready to run."""
