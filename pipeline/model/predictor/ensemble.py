"""Test-time augmentation and ensembles: the mean probability of several forward passes.

Transposed and mirrored tiles give slightly different results, and so do separately trained networks; their mean is
usually better (test-time augmentation: Krizhevsky et al. 2012, section 5; ensembles: Hansen & Salamon 1990). Each
term of the mean costs a forward pass per tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from pipeline.errors import ModelError, SettingsError
from pipeline.model.predictor.compiled import BatchShape
from pipeline.model.predictor.ensemble_card import merge_cards
from pipeline.model.predictor.precision import PrecisionCheck, combine_checks
from pipeline.model.predictor.protocol import (
    ArrayFunction,
    Augment,
    LoadedModel,
    Predictor,
    Runnable,
)


@dataclass(frozen=True, kw_only=True)
class DihedralTransform:
    """A symmetry of the square: transpose it, then mirror its rows, its columns or both."""

    transpose: bool = False
    """Swap rows and columns first."""
    mirrored: tuple[int, ...] = ()
    """Axes mirrored then: -2 is upside down, -1 is left to right."""

    def apply(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` -> the transformed tiles, `(N, bands, W, H)` when transposed."""
        turned = tiles.transpose(-2, -1) if self.transpose else tiles
        return turned.flip(self.mirrored) if self.mirrored else turned

    def undo(self, tiles: Tensor) -> Tensor:
        """`undo(apply(tiles)) == tiles`."""
        turned = tiles.flip(self.mirrored) if self.mirrored else tiles
        return turned.transpose(-2, -1) if self.transpose else turned


_TURNS = (
    DihedralTransform(),
    DihedralTransform(mirrored=(-2, -1)),
    DihedralTransform(transpose=True, mirrored=(-2,)),
    DihedralTransform(transpose=True, mirrored=(-1,)),
)
_MIRRORS = (DihedralTransform(mirrored=(-1,)), DihedralTransform(mirrored=(-2,)))
_DIAGONALS = (DihedralTransform(transpose=True), DihedralTransform(transpose=True, mirrored=(-2, -1)))
SYMMETRIES: Mapping[Augment, tuple[DihedralTransform, ...]] = MappingProxyType(
    {
        "none": _TURNS[:1],
        "flips": (*_TURNS[:2], *_MIRRORS),
        "rotations": _TURNS,
        "all": (*_TURNS, *_MIRRORS, *_DIAGONALS),
    }
)
"""The symmetries of each setting. Halves, and halves of halves, are cosets of a normal subgroup: see `_mean`."""


class TTAPredictor:
    """A model whose probabilities are the mean over symmetries of the square; it pickles as its model does."""

    def __init__(self, model: LoadedModel, augment: Augment) -> None:
        """Bind a model to a set of symmetries."""
        self.card, self.device, self.lock = model.card, model.device, model.lock
        self.passes = len(SYMMETRIES[augment])
        """Passes of the network per tile."""
        self._model, self._augment = model, augment

    @property
    def identity(self) -> str:
        """Identity of the model and the set of symmetries."""
        return f"{self._model.identity} augment-{self._augment}"

    @property
    def members(self) -> tuple[LoadedModel, ...]:
        """Itself: one model."""
        return (self,)

    def __reduce__(self) -> tuple[Callable[..., TTAPredictor], tuple[object, ...]]:
        return TTAPredictor, (self._model, self._augment)

    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> `(N, classes, h, w)` probabilities, float32 in 0..1."""
        return _mean(SYMMETRIES[self._augment], lambda symmetry: symmetry.undo(self._model(symmetry.apply(tiles))))

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """The check of the model: a mean of probabilities changes by no more than they do."""
        return self._model.check_precision(tiles)

    def runnable(self, work: BatchShape) -> Runnable:
        """See `LoadedModel.runnable`; tiles that are not square need the model for both orientations."""
        symmetries, shape = SYMMETRIES[self._augment], work.shape
        work = replace(work, batches=work.batches * len(symmetries))
        upright = turned = self._model.runnable(work)
        if shape is not None and shape[2] != shape[3] and any(symmetry.transpose for symmetry in symmetries):
            turned = self._model.runnable(replace(work, shape=(*shape[:2], shape[3], shape[2])))
        return _TTARunnable(upright, turned, symmetries)


class _TTARunnable:
    """The `Runnable` of a `TTAPredictor`; stateless, so it is as thread-safe as the network."""

    def __init__(self, upright: Runnable, turned: Runnable, symmetries: Sequence[DihedralTransform]) -> None:
        self.dtype, self.layout, self.device = upright.dtype, upright.layout, upright.device
        self._upright, self._turned, self._symmetries = upright, turned, symmetries

    @torch.inference_mode()
    def __call__(self, tiles: Tensor) -> Tensor:
        tiles = tiles.to(self.device, self.dtype)
        return _mean(self._symmetries, lambda symmetry: self._run(tiles, symmetry))

    def _run(self, tiles: Tensor, symmetry: DihedralTransform) -> Tensor:
        network = self._turned if symmetry.transpose else self._upright
        return symmetry.undo(network(symmetry.apply(tiles).contiguous(memory_format=self.layout)))


def _mean(symmetries: Sequence[DihedralTransform], run: Callable[[DihedralTransform], Tensor]) -> Tensor:
    """The mean of `2^k` terms as a tree of sums, which keeps two laws to the last bit.

    Equal terms give that term: each sum doubles it exactly. And a turned tile gives the turned result: turning the
    tile permutes the terms, but sends the halves of each (sub)tree, being cosets of a normal subgroup, to halves of
    a (sub)tree, and `a + b == b + a`.
    """
    return _sum(symmetries, run) / len(symmetries)


def _sum(symmetries: Sequence[DihedralTransform], run: Callable[[DihedralTransform], Tensor]) -> Tensor:
    if len(symmetries) == 1:
        return run(symmetries[0])
    half = len(symmetries) // 2
    return _sum(symmetries[:half], run) + _sum(symmetries[half:], run)


class EnsemblePredictor:
    """Several models as one; the engine normalises tiles for each member and averages the results."""

    def __init__(self, models: Sequence[LoadedModel], *, threshold: float | None = None) -> None:
        """Join models on one device.

        Args:
            models: at least one; the order decides the last bits of the mean.
            threshold: decides classes; None takes the models' own, which must then agree.

        Raises:
            ModelError: their cards contradict each other.
            SettingsError: their thresholds differ and `threshold` is None.
        """
        self.members = tuple(member for model in models for member in model.members)
        self.card = merge_cards([model.card for model in models], threshold=threshold)
        self.device, self.lock = models[0].device, models[0].lock
        self._threshold = threshold

    @property
    def identity(self) -> str:
        """Identities of the members in order: weights first, then the rest."""
        words = [member.identity.split(maxsplit=1) for member in self.members]
        return f"{'+'.join(word[0] for word in words)} {'+'.join(word[1] for word in words)}"

    def __reduce__(self) -> tuple[Callable[..., EnsemblePredictor], tuple[object, ...]]:
        return _join, (self.members, self._threshold)

    def __call__(self, tiles: Tensor) -> Tensor:
        """`(N, bands, H, W)` normalised float32 -> probabilities; members must have the same normalisation."""
        self._check_same_normalization()
        return running_mean([member(tiles) for member in self.members])

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        """The most accurate precision that a member needs; all members run in it."""
        self._check_same_normalization()
        return combine_checks([member.check_precision(tiles) for member in self.members])

    def runnable(self, work: BatchShape) -> Runnable:
        """See `LoadedModel.runnable`; members must have the same normalisation."""
        self._check_same_normalization()
        return _EnsembleRunnable([member.runnable(work) for member in self.members])

    def with_tta(self, augment: Augment) -> EnsemblePredictor:
        """The ensemble of the members with test-time augmentation."""
        return EnsemblePredictor([TTAPredictor(member, augment) for member in self.members], threshold=self._threshold)

    def _check_same_normalization(self) -> None:
        if len({member.card.normalization for member in self.members}) > 1:
            raise ModelError("the members normalise pixels differently, so no tiles suit all; give each its own")


class _EnsembleRunnable:
    """The mean of networks that take the same tiles."""

    def __init__(self, members: Sequence[Runnable]) -> None:
        self.dtype, self.layout, self.device = members[0].dtype, members[0].layout, members[0].device
        self._members = members

    def __call__(self, tiles: Tensor) -> Tensor:
        return running_mean([member(tiles) for member in self._members])


def _join(members: Sequence[LoadedModel], threshold: float | None) -> EnsemblePredictor:
    return EnsemblePredictor(members, threshold=threshold)


def running_mean(terms: Sequence[Tensor]) -> Tensor:
    """The mean of tensors in their order; equal terms give that term, to the last bit."""
    mean = terms[0]
    for count, term in enumerate(terms[1:], start=2):
        mean = mean.lerp(term, 1 / count)
    return mean


def with_tta(predictor: Predictor | ArrayFunction, augment: Augment) -> Predictor | ArrayFunction:
    """A predictor with test-time augmentation as in the setting `inference.augment`.

    Raises:
        SettingsError: the predictor is a plain function or torch module, which may depend on the orientation of tiles.
    """
    if augment == "none":
        return predictor
    if isinstance(predictor, EnsemblePredictor):
        return predictor.with_tta(augment)
    if not isinstance(predictor, LoadedModel):
        raise SettingsError(
            f"inference.augment: {augment} needs a loaded checkpoint; a plain function can average by itself"
        )
    return TTAPredictor(predictor, augment)


def forward_passes(predictor: Predictor | ArrayFunction) -> int:
    """Number of times a network runs on each tile."""
    if not isinstance(predictor, LoadedModel):
        return 1
    return sum(member.passes if isinstance(member, TTAPredictor) else 1 for member in predictor.members)
