"""Pictures of labelled windows: what was seen, what is true, what was predicted, and where they differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ShownWindow:
    """One window with its labels and its prediction, all of one height and width."""

    scene: str
    """Name of the scene."""
    row: int
    """First row in the scene's grid."""
    col: int
    """First column."""
    pixels: NDArray[np.generic]
    """`(bands, H, W)`, raw or normalised: the picture is stretched anyway."""
    valid: NDArray[np.bool_]
    """`(H, W)`, True = real data."""
    truth: NDArray[np.bool_]
    """`(outputs, H, W)`, True where labelled so; a softmax model's outputs begin with its background."""
    counted: NDArray[np.bool_]
    """`(outputs, H, W)`, True = valid and labelled, as in `Batch.counted`."""
    probability: NDArray[np.float32]
    """`(outputs, H, W)`, 0 to 1, calibrated."""
