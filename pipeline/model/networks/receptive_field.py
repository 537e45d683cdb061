"""Receptive fields along one axis: spans of pixels traced backwards from output to input.

A span `(first, last)` names pixels of one layer, both inclusive. Each function returns the pixels of a layer's input
that affect a span of its output; padding is not counted.
"""

from __future__ import annotations

from collections.abc import Callable

Span = tuple[int, int]
"""First and last pixel of one axis, both inclusive."""
Reach = Callable[[int], Span]
"""Output position -> the input pixels that affect it."""


def before_convolution(span: Span, *, reach: int, stride: int = 1) -> Span:
    """Input of a convolution (or pooling) that looks `reach` pixels to either side and is padded by as many.

    >>> before_convolution((5, 5), reach=1)
    (4, 6)
    >>> before_convolution((5, 5), reach=3, stride=2)
    (7, 13)
    """
    return span[0] * stride - reach, span[1] * stride + reach


def before_pooling(span: Span) -> Span:
    """Input of a 2x2 pooling: `i -> 2i, 2i + 1`."""
    return 2 * span[0], 2 * span[1] + 1


def before_interpolation(span: Span, factor: int) -> Span:
    """Input of bilinear interpolation by an even factor with `align_corners=False`.

    Output `o` lies at `(o + 1/2) / factor - 1/2`, which for even factors is never a whole number, so it
    reads both neighbours. A transposed convolution of kernel `2 * factor`, stride `factor` and padding
    `factor / 2`, which is what bilinear interpolation is, reads the same pixels.

    >>> before_interpolation((0, 1), 2), before_interpolation((4, 11), 8)
    ((-1, 1), (0, 1))
    """
    half = factor // 2
    return (span[0] - half) // factor, (span[1] + half) // factor


def widest_reach(reach: Reach, stride: int) -> int:
    """Side of the centred square outside of which no input pixel affects an output pixel; odd.

    `max(abs(input - output)) <= widest_reach // 2` over all pairs that affect each other, and some pair
    attains it: the reach depends on the position modulo `stride`, and this is the largest.
    """
    spans = [(position, *reach(position)) for position in range(stride)]
    return 2 * max(max(position - low, high - position) for position, low, high in spans) + 1


def aligned_halo(reach: Reach, stride: int) -> int:
    """Pixels around a core, whose edges are multiples of `stride`, that decide the core.

    No more than `widest_reach // 2`, because the widest reach may belong to pixels inside a stride cell.
    """
    last = stride - 1
    return max(-min(reach(position)[0] for position in range(stride)),
               max(reach(position)[1] for position in range(stride)) - last)  # fmt: skip
