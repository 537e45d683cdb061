"""Normalisation of raw pixels to model input; the only definition, shared by inference and training.

`model_input = clip((pixel * scale + offset) * gain + bias)`, where `scale` and `offset` are the
scene's tags (1 and 0 when absent) and `gain`, `bias`, `clip` come from the ModelCard. Invalid pixels
become 0 after that, which is the mean of standardised data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.model import Normalization
from pipeline.scene import Scene


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """Tags and normalisation folded into one multiply-add per band: `clip(pixel * gain + bias)`."""

    gain: tuple[float, ...]
    """Factor per band."""
    bias: tuple[float, ...]
    """Summand per band, in model units."""
    clip: tuple[float, float] | None = None
    """Bounds of the model input, or None."""

    def apply(self, pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Normalise on the CPU: `(bands, H, W)` pixels and `(H, W)` valid -> float32 `(bands, H, W)`."""
        gain, bias = (np.array(v, np.float32)[:, None, None] for v in (self.gain, self.bias))
        result = pixels.astype(np.float32)
        result *= gain
        result += bias
        if self.clip is not None:
            np.clip(result, *self.clip, out=result)
        return np.where(valid, result, np.float32(0))


def input_transform(scene: Scene, normalization: Normalization) -> InputTransform:
    """Fold a scene's scale and offset tags into the model's normalisation."""
    count = len(scene.bands)
    gains = normalization.gain or (1.0,) * count
    biases = normalization.bias or (0.0,) * count
    return InputTransform(
        gain=tuple(s * g for s, g in zip(scene.scales, gains, strict=True)),
        bias=tuple(o * g + b for o, g, b in zip(scene.offsets, gains, biases, strict=True)),
        clip=normalization.clip,
    )
