"""Segmentation losses: cross-entropy, focal, Dice, Tversky and Lovász, and their weighted sum."""
