"""Samples of labelled scenes: splits, windows and the loader."""
