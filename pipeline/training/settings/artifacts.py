"""Settings of what a training leaves to look at."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ArtifactsSpec:
    """What is left beside the checkpoint."""

    overlays: int = 6
    """Pictures of held-out windows, 0 to 60: a third each of the best, the worst and any; 0 = none."""
    tensorboard: bool = False
    """Write scalars of each epoch for TensorBoard too; needs `pip install scenemill[tensorboard]`."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlays <= 60:
            raise SettingsError(f"overlays must be from 0 to 60, not {self.overlays}")
