"""Scores of masks and of objects, with their intervals."""
