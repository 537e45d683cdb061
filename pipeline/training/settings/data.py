"""Settings of training data: split, samples and normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import SettingsError

MIN_BLOCK_SIZE = 16
"""Side in pixels of the smallest block size that an error message proposes."""


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Which part of the data is held out for validation, and which for the test."""

    kind: Literal["auto", "scenes", "blocks"] = "auto"
    """`scenes`: whole scenes are held out; `blocks`: blocks inside them; `auto`: scenes when some are named or there
    are at least 10, otherwise blocks."""
    validation: tuple[str, ...] = ()
    """Scenes held out for validation: stems, paths, or a text file ending in .txt with one scene per line."""
    test: tuple[str, ...] = ()
    """Scenes held out for the test, likewise. When validation scenes are named, only named scenes are in the test."""
    validation_share: float = 0.1
    """Share of scenes or blocks drawn for validation when none is named; above 0 and at most 0.5."""
    test_share: float = 0.1
    """Share of scenes or blocks drawn for the test when no scene is named; 0 (no test) to 0.5."""
    block_size: int = 512
    """Side in pixels of held-out blocks, at least 1; a few times the tile size, or few training windows fit between."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise SettingsError(f"block_size must be at least 1, not {self.block_size}")
        if not 0 < self.validation_share <= 0.5:
            raise SettingsError(f"validation_share must be above 0 and at most 0.5, not {self.validation_share}")
        if not 0 <= self.test_share <= 0.5:
            raise SettingsError(f"test_share must be from 0 to 0.5, not {self.test_share}")
        if self.validation_share + self.test_share > 0.8:
            raise SettingsError(
                f"validation_share and test_share must leave a fifth for training, but {self.validation_share} and "
                f"{self.test_share} are held out; lower one"
            )
        if self.kind == "blocks" and (self.validation or self.test):
            raise SettingsError(
                f"kind must be auto or scenes when scenes are named, not blocks with {(*self.validation, *self.test)}"
            )

    @property
    def parts(self) -> int:
        """Number of parts: training, validation and, with a `test_share`, the test."""
        return 3 if self.test_share else 2


Balance = Literal["area", "scenes"]
"""How a scene is drawn for a window: in proportion to its pixels, or uniformly."""


@dataclass(frozen=True, kw_only=True)
class SamplesSpec:
    """Size, number and choice of the training windows."""

    tile_size: int = 256
    """Side in pixels of the network input while training; must fit the network's stride."""
    batch_size: int = 8
    """Windows per optimizer step, at least 1."""
    windows_per_epoch: int = 512
    """Random windows between two validations, at least 1; rounded up to whole batches."""
    labelled_share: float = 0.5
    """Share of windows that contain an object, 0 to 1, each class equally often; others contain any labelled pixel."""
    balance: Balance = "area"
    """`area`: every pixel (of the class, where one is drawn) is equally likely; `scenes`: every scene is."""
    cache_mb: int = 4096
    """Scenes are kept in memory when all of them fit into this many MiB; otherwise windows are read as needed."""
    threads: int = 2
    """Worker threads that prefetch batches, at least 1."""

    def __post_init__(self) -> None:
        bounds = {"tile_size": 1, "batch_size": 1, "windows_per_epoch": 1, "threads": 1, "cache_mb": 0}
        for key, bound in bounds.items():
            if getattr(self, key) < bound:
                raise SettingsError(f"{key} must be at least {bound}, not {getattr(self, key)}")
        if not 0 <= self.labelled_share <= 1:
            raise SettingsError(f"labelled_share must be from 0 to 1, not {self.labelled_share}")
        if self.balance not in get_args(Balance):
            raise SettingsError(f"balance must be one of {', '.join(get_args(Balance))}, not {self.balance!r}")


Kind = Literal["standard", "percentile"]
"""How raw values become model input."""


@dataclass(frozen=True, kw_only=True)
class NormalizationSpec:
    """How raw values become model input; measured on valid training pixels and written into the model card."""

    kind: Kind = "standard"
    """`standard`: mean 0 and deviation 1 per band; `percentile`: two percentiles per band become 0 and 1, clipped."""
    low: float = 2.0
    """Percentile that becomes 0, from 0 and below `high`."""
    high: float = 98.0
    """Percentile that becomes 1, up to 100."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SettingsError(f"kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if not 0 <= self.low < self.high <= 100:
            raise SettingsError(f"low must be below high, both from 0 to 100, not {self.low} and {self.high}")
