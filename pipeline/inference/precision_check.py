"""Precision of one scene, checked on its own pixels before its regions start.

A lower number format may be harmless for one scene and not for another, so it is checked on a window of the scene.
A fixed search finds the window, and every region runs in the chosen precision: the result does not depend on how
the work is split. The candidates are in `pipeline.model.predictor.precision`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from pipeline.inference.normalize import input_transform
from pipeline.inference.tiling.tiles import Axis, TilePlan
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.exported import trial_tiles
from pipeline.model.predictor import LoadedModel, PrecisionCheck, combine_checks
from pipeline.scene import Scene, SceneReader

log = logging.getLogger(__name__)

TRIAL_SIDE = 256
"""About the side of the trial window, px: large enough for many textures, small enough to cost little."""
PLACES = 3
"""The search takes the centres of `PLACES x PLACES` parts of the scene, the middle one first ..."""
ENOUGH_VALID = 0.5
"""... and ends at the first window of which at least this share is valid; else it takes the fullest."""


def choose_precision(
    scene: Scene, plan: TilePlan, card: ModelCard, predictor: Predictor | ArrayFunction
) -> PrecisionCheck:
    """Choose the precision in which a scene is run.

    Args:
        scene: its pixels are run.
        plan: its tile plan.
        card: of the predictor.
        predictor: every member is checked; if one falls back to float32, all do. A plain function or torch module
            runs unchanged.

    Raises:
        SettingsError: the network does not run in the precision of the settings.
        DamagedSceneError: the window cannot be decoded.
    """
    if not isinstance(predictor, LoadedModel):
        return PrecisionCheck(precision="float32")
    window, pixels, valid = _trial_window(scene, plan, card)
    check = combine_checks(
        [member.check_precision(_as_tile(scene, member.card, pixels, valid)) for member in predictor.members]
    )
    check.log_fallback(str(scene.location))
    log.debug("%s: precision %s was checked at %s", scene.location, check.precision, window)
    return check


def _as_tile(scene: Scene, card: ModelCard, pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> Tensor:
    """`(1, bands, H, W)` model input; of pixels that are all nodata, seeded noise instead."""
    if not valid.any():
        return trial_tiles(card)
    return torch.from_numpy(input_transform(scene, card.normalization).apply(pixels, valid))[None]


def _trial_window(
    scene: Scene, plan: TilePlan, card: ModelCard
) -> tuple[Window, NDArray[np.generic], NDArray[np.bool_]]:
    """The first window of the search that is valid enough, or the fullest; mirrored past the scene as tiles are."""
    height, width = (_trial_side(axis, card) for axis in (plan.rows, plan.cols))
    best: tuple[float, Window, NDArray[np.generic], NDArray[np.bool_]] | None = None
    with SceneReader(scene) as reader:
        for row, col in _places():
            window = _window((plan.rows.length, plan.cols.length), (height, width), (row, col))
            pixels, valid = reader.read(window)
            share = float(valid.mean())
            if best is None or share > best[0]:
                best = (share, window, pixels, valid)
            if share >= ENOUGH_VALID:
                break
    assert best is not None
    _, window, pixels, valid = best
    past = [(0, height - valid.shape[0]), (0, width - valid.shape[1])]
    return window, np.pad(pixels, [(0, 0), *past], "reflect"), np.pad(valid, past, "reflect")


def _trial_side(axis: Axis, card: ModelCard) -> int:
    """A size that the network takes: about `TRIAL_SIDE`, or that of a tile where the scene is smaller."""
    if card.tile_size is not None:
        return card.tile_size
    smallest = max(TRIAL_SIDE, 2 * card.margin + 1)
    side = smallest + (card.size_offset - smallest) % card.stride
    return side if side <= axis.length else min(side, axis.tile)


def _places() -> Iterator[tuple[float, float]]:
    """`(row, column)` as shares of the scene, the middle first, then row by row."""
    shares = [(2 * k + 1) / (2 * PLACES) for k in range(PLACES)]
    return iter(sorted(((r, c) for r in shares for c in shares), key=lambda place: place != (0.5, 0.5)))


def _window(shape: Sequence[int], side: Sequence[int], place: tuple[float, float]) -> Window:
    """A window of at most `side` inside `shape`, about a place."""
    (top, height), (left, width) = (_span(*each) for each in zip(shape, side, place, strict=True))
    return Window(left, top, width, height)


def _span(length: int, side: int, place: float) -> tuple[int, int]:
    taken = min(length, side)
    return min(max(0, round(length * place) - taken // 2), length - taken), taken
