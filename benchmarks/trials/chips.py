"""Small pictures with a mask each: read, predicted whole, and compared class by class."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from pipeline.inference import InputTransform
from pipeline.model import ModelCard
from pipeline.model.predictor import LoadedPredictor


def read_picture(path: Path) -> NDArray[np.generic]:
    """All bands of a picture, `(bands, height, width)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            pixels: NDArray[np.generic] = dataset.read()
    return pixels


def predict(predictor: LoadedPredictor, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Probabilities `(classes, height, width)` of a whole picture, padded to a size the network takes."""
    height, width = pixels.shape[1:]
    inputs = model_input(pixels, predictor.card)
    below, right = -height % predictor.card.stride, -width % predictor.card.stride
    padded = np.pad(inputs, ((0, 0), (0, below), (0, right)))
    probabilities = predictor(torch.from_numpy(padded)[None])[0].cpu().numpy()
    return np.asarray(probabilities[:, :height, :width])


def model_input(pixels: NDArray[np.generic], card: ModelCard) -> NDArray[np.float32]:
    """Raw pixels without scale tags, normalised as the card says; every pixel counts."""
    normalization = card.normalization
    transform = InputTransform(
        gain=normalization.gain or (1.0,) * len(pixels),
        bias=normalization.bias or (0.0,) * len(pixels),
        clip=normalization.clip,
    )
    return transform.apply(pixels, np.ones(pixels.shape[1:], bool))
