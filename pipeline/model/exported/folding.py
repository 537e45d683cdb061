"""Batch norm folding in the graph of an exported network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.model.exported.graph import Name, Step, Steps, names_in
from pipeline.model.exported.operators import base_name

BATCH_NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")
"""Arguments of a batch norm that are tensors of one number per channel."""


@dataclass(frozen=True, kw_only=True)
class FoldedGraph:
    """A graph and the tensors that it takes."""

    steps: Steps
    """The remaining steps."""
    tensors: Mapping[str, Tensor]
    """Name of a step input -> tensor, for all inputs but the tiles."""


def fold_steps(steps: Steps, tensors: Mapping[str, Tensor]) -> FoldedGraph:
    """Fold each batch norm that alone reads a convolution's result into the convolution.

    Those without stored weights, in training mode or inside parts of the graph stay; see
    `pipeline.model.predictor.optimize.fold_batch_norm` for the arithmetic.

    Args:
        steps: a graph.
        tensors: name of a step input -> tensor, for all inputs but the tiles.
    """
    # Only a convolution whose result has one reader may change.
    readers = Counter(name for step in steps.steps for name in names_in((*step.arguments, *step.keywords.values())))
    readers.update(names_in(steps.outputs))
    makers = {step.results[0]: step for step in steps.steps if _is_plain_convolution(step, tensors)}

    # The convolution takes over the results of the norm, whose step is removed.
    changed: dict[tuple[str, ...], Step] = {}
    folded, added = set[tuple[str, ...]](), dict[str, Tensor]()
    for norm in steps.steps:
        read = norm.keywords.get("input")
        maker = makers.get(read.text) if isinstance(read, Name) and readers[read.text] == 1 else None
        if maker is None or not _follows(norm, maker, tensors):
            continue
        weight, bias = (f"{maker.results[0]}.{part}" for part in ("weight", "bias"))
        added[weight], added[bias] = _folded(maker, norm, tensors)
        keywords = {**maker.keywords, "weight": Name(weight), "bias": Name(bias)}
        changed[maker.results] = replace(maker, keywords=keywords, results=norm.results)
        folded.add(norm.results)
    kept = tuple(changed.get(step.results, step) for step in steps.steps if step.results not in folded)

    # Drop tensors and inputs that no step reads any more.
    used = {name for step in kept for name in names_in((*step.arguments, *step.keywords.values()))}
    used |= names_in(steps.outputs)
    inputs = [name for name in steps.inputs if name in used or name not in tensors]
    remaining = {name: tensor for name, tensor in {**tensors, **added}.items() if name in used}
    return FoldedGraph(steps=replace(steps, inputs=(*inputs, *added), steps=kept), tensors=remaining)


def _folded(convolution: Step, norm: Step, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    weight, mean, variance = (
        _stored(step, key, tensors)
        for step, key in ((convolution, "weight"), (norm, "running_mean"), (norm, "running_var"))
    )
    eps = norm.keywords["eps"]
    assert weight is not None
    assert mean is not None
    assert variance is not None
    assert isinstance(eps, float)
    bias, factor, summand = (
        _stored(step, key, tensors) for step, key in ((convolution, "bias"), (norm, "weight"), (norm, "bias"))
    )
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, eps, factor, summand)
    return fused[0].detach(), fused[1].detach()


def _is_plain_convolution(step: Step, tensors: Mapping[str, Tensor]) -> bool:
    if base_name(step.target) != "conv2d" or not step.single:
        return False
    weight, bias = (_stored(step, key, tensors) for key in ("weight", "bias"))
    return weight is not None and weight.ndim == 4 and _suits(step, "bias", bias, len(weight))


def _follows(norm: Step, convolution: Step, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a step is a batch norm over the channels of a convolution, with statistics that are stored."""
    weight = _stored(convolution, "weight", tensors)
    if base_name(norm.target) != "batch_norm" or norm.keywords.get("training") is not False or weight is None:
        return False
    needed = [_stored(norm, key, tensors) for key in ("running_mean", "running_var")]
    return (
        isinstance(norm.keywords.get("eps"), float)
        and all(each is not None for each in needed)
        and all(_suits(norm, key, _stored(norm, key, tensors), len(weight)) for key in BATCH_NORM_TENSORS)
    )


def _stored(step: Step, key: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    value = step.keywords.get(key)
    return tensors.get(value.text) if isinstance(value, Name) else None


def _suits(step: Step, key: str, tensor: Tensor | None, channels: int) -> bool:
    """Whether an argument is left out, or a stored tensor of one number per channel."""
    return step.keywords.get(key) is None if tensor is None else tensor.shape == (channels,)
