"""Colour palette of classes."""

from __future__ import annotations

import colorsys


def class_colour(index: int) -> tuple[int, int, int]:
    """RGB of the class at an index of the legend: hues a golden ratio apart, starting at orange.

    >>> class_colour(0), class_colour(1)
    ((242, 123, 36), (63, 36, 242))
    """
    red, green, blue = colorsys.hsv_to_rgb((0.07 + index * 0.618034) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
