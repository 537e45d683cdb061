"""Overlay panels: the arrays of a window as four RGB images, picture, truth, probability and errors.

Colours of errors are from Okabe and Ito's palette (Wong 2011, Nature Methods 8:441), which is safe for colour-blind
readers; classes have the colours of `mask.tif`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.mosaic import class_colour
from pipeline.scene import canonical_name

Colour = tuple[int, int, int]
Value = TypeVar("Value", bound=np.generic)

PERCENTILES = (2.0, 98.0)
"""Percentiles of valid pixels that become black and white."""
FALSE_POSITIVE: Colour = (230, 159, 0)
FALSE_NEGATIVE: Colour = (86, 180, 233)
WRONG_CLASS: Colour = (204, 121, 167)
TRUE_POSITIVE: Colour = (255, 255, 255)
GAP: tuple[Colour, Colour] = ((205, 205, 205), (170, 170, 170))
"""Background and stripes of pixels that do not count."""
STRIPE = 8
"""Screen pixels between stripes."""
RAMP = "viridis"
"""Perceptually uniform, and legible to colour-blind readers (Smith and van der Walt 2015)."""


@dataclass(frozen=True, kw_only=True)
class OverlayArrays:
    """Arrays of one window, all of one height and width, without background planes."""

    picture: NDArray[np.uint8]
    """`(H, W, 3)`, RGB of the scene."""
    valid: NDArray[np.bool_]
    """`(H, W)`, True = real data."""
    truth: NDArray[np.bool_]
    """`(classes, H, W)`, True where labelled so."""
    probability: NDArray[np.float32]
    """`(classes, H, W)`, 0 to 1."""
    decided: NDArray[np.bool_]
    """`(classes, H, W)`, True where predicted."""
    weight_mask: NDArray[np.bool_]
    """`(classes, H, W)`, True = valid and labelled."""

    def magnified(self, factor: int) -> OverlayArrays:
        """The same at `(factor H, factor W)`, by nearest neighbour."""
        return OverlayArrays(
            picture=self.picture.repeat(factor, axis=0).repeat(factor, axis=1),
            valid=_magnified(self.valid, factor),
            truth=_magnified(self.truth, factor),
            probability=_magnified(self.probability, factor),
            decided=_magnified(self.decided, factor),
            weight_mask=_magnified(self.weight_mask, factor),
        )

    @property
    def gap(self) -> NDArray[np.bool_]:
        """`(H, W)`, True where no class counts."""
        return ~np.asarray(self.weight_mask.any(axis=0))

    @property
    def faded(self) -> NDArray[np.uint8]:
        """`(H, W, 3)`: the picture in dark greys, as the background of coloured classes or errors."""
        grey = 20 + 0.45 * self.picture.mean(axis=-1, keepdims=True)
        return np.repeat(np.rint(grey).astype(np.uint8), 3, axis=-1)


@dataclass(frozen=True, kw_only=True)
class LegendKey:
    """One entry of a panel's legend."""

    name: str
    colour: Colour
    striped: bool = False
    """Whether the swatch is drawn like pixels that do not count."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One image of a sheet, with title and legend."""

    title: str
    colours: NDArray[np.uint8]
    """`(H, W, 3)` RGB."""
    keys: tuple[LegendKey, ...] = ()
    ramp: NDArray[np.uint8] | None = None
    """`(256, 3)` colours of 0 to 1, drawn as a colour bar below the image; None = no bar."""
    mark: float | None = None
    """Position of the mark on the bar, 0 to 1: the threshold."""


def paint_picture(planes: OverlayArrays) -> Panel:
    """The stretched pixels of the scene."""
    gap = ~planes.valid
    keys = (LegendKey(name="nodata", colour=GAP[0], striped=True),) if gap.any() else ()
    return Panel(title="picture", colours=striped(planes.picture, gap), keys=keys)


def paint_truth(planes: OverlayArrays, names: Sequence[str]) -> Panel:
    """Labelled objects, tinted and outlined on a grey picture."""
    colours, keys = planes.faded, []
    for name, colour, inside in zip(names, class_colours(names), planes.truth & planes.weight_mask, strict=True):
        if inside.any():
            colours = tinted(colours, inside, colour, 0.45)
            colours[edge(inside)] = colour
            keys.append(LegendKey(name=name, colour=colour))
    return Panel(title="truth", colours=striped(colours, planes.gap), keys=(*keys, *_gap_key(planes)))


def paint_probability(planes: OverlayArrays, names: Sequence[str], threshold: float | None) -> Panel:
    """One class: its probability on a colour ramp. Several: the colour of the likeliest, darker where less likely."""
    probability, gap = np.clip(planes.probability, 0, 1), ~planes.valid
    if len(names) == 1:
        ramp = ramp_colours()
        colours = ramp[np.rint(probability[0] * 255).astype(np.uint8)]
        return Panel(title="probability", colours=striped(colours, gap), ramp=ramp, mark=threshold)
    palette = class_colours(names)
    lit = np.array(palette, np.float32)[probability.argmax(axis=0)] * probability.max(axis=0)[..., None]
    rows = zip(names, palette, planes.decided, strict=True)
    keys = tuple(LegendKey(name=name, colour=colour) for name, colour, inside in rows if inside.any())
    colours = striped(np.rint(lit).astype(np.uint8), gap)
    return Panel(title="probability (darker: less likely)", colours=colours, keys=keys)


def paint_errors(planes: OverlayArrays) -> Panel:
    """True positives in white, false positives, false negatives and wrong classes in colour, on a grey picture."""
    truth, decided, weight_mask = planes.truth, planes.decided, planes.weight_mask
    false_positive = (decided & ~truth & weight_mask).any(axis=0)
    false_negative = (truth & ~decided & weight_mask).any(axis=0)
    true_positive = np.asarray((truth & decided & weight_mask).any(axis=0) & ~false_positive & ~false_negative)
    colours = tinted(planes.faded, true_positive, TRUE_POSITIVE, 0.7)
    colours[false_positive], colours[false_negative] = FALSE_POSITIVE, FALSE_NEGATIVE
    colours[false_positive & false_negative] = WRONG_CLASS
    keys = [
        LegendKey(name="hit", colour=TRUE_POSITIVE),
        LegendKey(name="false alarm", colour=FALSE_POSITIVE),
        LegendKey(name="miss", colour=FALSE_NEGATIVE),
    ]
    if len(truth) > 1:
        keys.append(LegendKey(name="other class", colour=WRONG_CLASS))
    return Panel(title="errors", colours=striped(colours, planes.gap), keys=(*keys, *_gap_key(planes)))


def display_bands(names: Sequence[str], count: int) -> list[int]:
    """Indices of the bands to show: red, green and blue by name, else the first three, else the first as grey.

    >>> display_bands(["blue", "green", "red", "nir"], 4), display_bands(["hh", "hv"], 2)
    ([2, 1, 0], [0])
    """
    found = {canonical_name(name): index for index, name in enumerate(names)}
    if len(names) == count and all(name in found for name in ("red", "green", "blue")):
        return [found["red"], found["green"], found["blue"]]
    return [0, 1, 2] if count >= 3 else [0]


def stretch(bands: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`(1 or 3, H, W)` raw -> `(H, W, 3)`: the `PERCENTILES` of valid pixels, of all bands together, to 0 and 255.

    One stretch for all bands keeps the colour balance; invalid pixels become black.
    """
    raw = bands.astype(np.float32)
    usable = valid & np.isfinite(raw).all(axis=0)
    if not usable.any():
        return np.zeros((*valid.shape, 3), np.uint8)
    low, high = np.percentile(raw[:, usable], PERCENTILES)
    scaled = (np.where(usable, raw, low) - low) / max(float(high - low), 1e-12)
    colours = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.array(np.broadcast_to(colours, (3, *valid.shape)).transpose(1, 2, 0), order="C")


def tinted(colours: NDArray[np.uint8], where: NDArray[np.bool_], tint: Colour, strength: float) -> NDArray[np.uint8]:
    """A copy with `(1 - strength) * colours + strength * tint` where True."""
    result = colours.copy()
    mixed = (1 - strength) * colours[where] + strength * np.array(tint, np.float32)
    result[where] = np.rint(mixed).astype(np.uint8)
    return result


def striped(colours: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A copy with grey diagonal stripes where True."""
    rows, cols = np.ogrid[: where.shape[0], : where.shape[1]]
    stripe = (rows + cols) % STRIPE < STRIPE // 4
    base, stripes = GAP
    result = colours.copy()
    result[where & ~stripe], result[where & stripe] = base, stripes
    return result


def edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `inside` at most two rows or columns from a pixel outside it; the window's border is no edge."""
    padded = np.pad(inside, 2, mode="edge")
    height, width = inside.shape
    inner = np.ones_like(inside)
    for row, col in ((0, 2), (1, 2), (3, 2), (4, 2), (2, 0), (2, 1), (2, 3), (2, 4)):
        inner &= padded[row : row + height, col : col + width]
    return inside & ~inner


def class_colours(names: Sequence[str]) -> list[Colour]:
    """The colours of the classes in `mask.tif`, in order."""
    return [class_colour(index) for index in range(len(names))]


def ramp_colours() -> NDArray[np.uint8]:
    """`(256, 3)` RGB of the probabilities 0 to 1."""
    from matplotlib import colormaps

    return np.array(colormaps[RAMP](np.linspace(0, 1, 256), bytes=True), np.uint8)[:, :3]


def _magnified(array: NDArray[Value], factor: int) -> NDArray[Value]:
    return np.repeat(np.repeat(array, factor, axis=-2), factor, axis=-1)


def _gap_key(planes: OverlayArrays) -> tuple[LegendKey, ...]:
    return (LegendKey(name="not counted", colour=GAP[0], striped=True),) if planes.gap.any() else ()
