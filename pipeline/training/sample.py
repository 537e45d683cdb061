"""Training sample: pixels, target and validity of one window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One window of a labelled scene."""

    pixels: NDArray[np.generic]
    """`(bands, height, width)` in the scene's type."""
    target: NDArray[np.uint8]
    """`(classes, height, width)`: 1 object, 0 none, 255 unlabelled."""
    valid: NDArray[np.bool_]
    """`(height, width)`, True = real data."""
