"""The settings of a training, one section per module."""
