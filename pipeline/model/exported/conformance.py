"""Conformance check of an imported network: seeded tiles are run and the outputs compared with the card."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.model.card import ModelCard
from pipeline.model.exported.module import ExportedNetwork

TRIAL_SIDE = 128
"""About the height and width of trial tiles where the network takes any, px."""
MAX_TRIAL_NUMBERS = 2**29
"""Numbers of the trial tiles, 2 GiB in float32."""
ROUNDING = 1e-4
"""Largest difference between two ways to compute one output, relative to the largest output or to 1."""


def trial_tiles(card: ModelCard, count: int = 1, *, larger: int = 0) -> Tensor:
    """Seeded tiles of smooth, standardised noise `(count, bands, side, side)`, of a size the network takes.

    Args:
        card: bands, tile size, stride, size offset and margin.
        count: how many.
        larger: strides by which the side exceeds the smallest one; no effect where the size is fixed.
    """
    side = card.tile_size
    if side is None:
        side = max(TRIAL_SIDE, 2 * card.margin + 1)
        side += (card.size_offset - side) % card.stride + larger * card.stride
    numbers = count * len(card.bands) * side**2
    if numbers > MAX_TRIAL_NUMBERS:
        raise ModelError(
            f"{count} tiles of {len(card.bands)} bands and {side} px are {numbers} numbers, over {MAX_TRIAL_NUMBERS}; "
            "export the network with smaller tiles"
        )
    coarse = (count, len(card.bands), side // 4 + 1, side // 4 + 1)
    noise = torch.randn(coarse, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(noise, size=(side, side), mode="bilinear")


@torch.inference_mode()
def check_network(network: ExportedNetwork, card: ModelCard) -> None:
    """Run a network on trial tiles and compare its outputs with its card."""
    tiles = trial_tiles(card, 2)
    outputs = _run(network, tiles, card)
    _check_range(outputs, card)
    if not torch.equal(_run(network, tiles, card), outputs):
        raise ModelError("the network returns something else each time; call network.eval() before torch.export.export")
    alone = _run(network, tiles[1:], card)
    if _difference(alone, outputs[1:]) > ROUNDING:
        raise ModelError(
            "the network's result for a tile depends on the other tiles of its batch (batch norm in training mode?); "
            "call network.eval() before torch.export.export"
        )
    _run(network, trial_tiles(card, larger=1), card)
    _check_receptive_field(network, tiles[:1], card)


def _run(network: ExportedNetwork, tiles: Tensor, card: ModelCard) -> Tensor:
    copied = tiles.clone()
    try:
        outputs: Tensor = network(copied)
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the network fails on tiles {tuple(tiles.shape)}, a size that its card (stride {card.stride}, size_offset "
            f"{card.size_offset}, tile_size {card.tile_size}) allows: {reason}; correct the card, or export it again"
        ) from error
    shrink = 2 * card.margin
    expected = (len(tiles), len(card.classes), tiles.shape[2] - shrink, tiles.shape[3] - shrink)
    if tuple(outputs.shape) != expected:
        raise ModelError(
            f"the network turned {tuple(tiles.shape)} into {tuple(outputs.shape)} where its card ("
            f"{len(card.classes)} classes, margin {card.margin}, stride {card.stride}, size_offset "
            f"{card.size_offset}) promises {expected}; "
            "correct the card, or resize the output inside the network"
        )
    if not torch.equal(copied, tiles):
        raise ModelError("the network overwrites its input; begin its forward with tiles = tiles.clone()")
    return outputs.float()


def _check_range(outputs: Tensor, card: ModelCard) -> None:
    if not bool(outputs.isfinite().all()):
        raise ModelError("the network returns NaN or infinity on standardised noise; look at its weights")
    if card.outputs == "logits":
        return
    low, high = float(outputs.min()), float(outputs.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ModelError(
            f"the network returns values from {low:.4g} to {high:.4g} where its card says probabilities, 0 to 1; "
            "if it returns logits, say so in the card: outputs: logits"
        )
    if card.activation == "softmax" and _difference(outputs.sum(dim=1), torch.ones(())) > ROUNDING:
        raise ModelError(
            "the classes of the network do not add up to 1 where its card says softmax probabilities; "
            "if they are independent, say so in the card: activation: sigmoid"
        )


def _check_receptive_field(network: ExportedNetwork, tiles: Tensor, card: ModelCard) -> None:
    """Change every pixel outside the receptive field of one output pixel; that one must stay."""
    side = tiles.shape[-1]
    if card.receptive_field is None or card.receptive_field + card.stride >= side:
        return
    reach, before = card.receptive_field // 2, network(tiles).float()
    for middle in {side // 2, side // 2 + card.stride // 2}:
        inside = slice(max(0, middle - reach), middle + reach + 1)
        changed = -tiles
        changed[:, :, inside, inside] = tiles[:, :, inside, inside]
        at = middle - card.margin
        after = network(changed).float()
        if _difference(after[..., at, at], before[..., at, at]) > ROUNDING:
            raise ModelError(
                f"an output pixel depends on pixels further away than the card's receptive_field "
                f"{card.receptive_field} px allows; correct the card (null: the network looks at the whole tile)"
            )


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest value, or to 1 where all are smaller."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))
