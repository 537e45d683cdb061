"""Pictures of a run's numbers: curves over epochs, and the reliability of probabilities."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ReliabilityBins(Protocol):
    """What is drawn of a reliability; `calibrate.Reliability` is one."""

    @property
    def confidence(self) -> NDArray[np.float64]:
        """`(bins,)`: mean predicted probability of the pixels of each bin; NaN where it is empty."""
        ...

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """`(bins,)`: share of those pixels that are of the class; NaN where it is empty."""
        ...

    @property
    def count(self) -> NDArray[np.int64]:
        """`(bins,)`: pixels in each bin."""
        ...

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1."""
        ...
