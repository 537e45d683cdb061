"""Settings of a training run's artifacts."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ArtifactsSpec:
    """Artifacts written next to the checkpoint."""

    overlays: int = 6
    """Pictures of held-out windows, 0 to 60: a third each of the best, the worst and randomly drawn ones; 0 = none."""
    tensorboard: bool = False
    """Also write the scalars of each epoch for TensorBoard; needs `pip install scenemill[tensorboard]`."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlays <= 60:
            raise SettingsError(f"overlays must be from 0 to 60, not {self.overlays}")
