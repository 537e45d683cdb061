"""Training curves and reliability diagram as PNG bytes.

Colours are from Okabe and Ito's palette (Wong 2011, Nature Methods 8:441), which is safe for colour-blind readers;
lines also differ by marker.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.mosaic import class_colour
from pipeline.training.records import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.training.validation.calibration import Reliability

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
WIDE = 12.0
"""Width in inches of a figure; 1,200 px at `DPI`."""
DPI = 100
MAX_CLASSES_DRAWN = 10
"""Classes with a curve; of more classes, those with the lowest final score are drawn."""
MIN_LOG_RATIO = 30.0
"""The loss axis is logarithmic when the largest value exceeds the smallest by more than this factor."""


def curves_png(history: Sequence[EpochRecord], best_epoch: int) -> bytes:
    """Loss, mean scores, scores of each class and learning rate over at least one epoch; the kept one is marked."""
    figure = _figure(8.0)
    panels = figure.subplots(2, 2, sharex=True)
    _draw_losses(panels[0, 0], history)
    _draw_scores(panels[0, 1], history, best_epoch)
    _draw_rate(panels[1, 0], history)
    _draw_classes(panels[1, 1], history)
    for axes in panels.flat:
        axes.axvline(best_epoch, color=GREY, linestyle=":", linewidth=1.5, zorder=0)
        axes.tick_params(labelbottom=True)
        axes.set_xlim(0.5, max(record.epoch for record in history) + 0.5)
    return _png(figure)


def reliability_png(before: Reliability, after: Reliability) -> bytes:
    """Observed share against predicted probability before and after calibration, and how many pixels each bin holds.

    On the diagonal, 80 % of the pixels with probability 0.8 are of the class (DeGroot and Fienberg 1983, The
    Statistician 32:12; Guo et al. 2017, ICML).
    """
    figure = _figure(10.0, wide=8.0, dpi=150)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1.5, label="perfectly calibrated")
    for bins, name, colour, marker in ((before, "before", ORANGE, "s"), (after, "after", BLUE, "o")):
        filled = np.asarray(bins.count) > 0
        label = f"{name} calibration, ECE {bins.ece:.4f}"
        upper.plot(
            bins.confidence[filled], bins.accuracy[filled], color=colour, marker=marker, label=label, linewidth=2
        )
        edges = np.linspace(0, 1, len(filled) + 1)
        lower.stairs(bins.count, edges, color=colour, fill=name == "after", alpha=0.6 if name == "after" else 1)
    _style_axes(upper, "observed share", x_label="", title="Reliability on held-out pixels")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    _style_axes(lower, "predictions per bin", x_label="predicted probability")
    lower.set_yscale("log" if before.count.any() and after.count.any() else "linear")
    lower.set_ylim(1, 2 * max(10, *before.count, *after.count))
    _add_legend(upper, loc="upper left")
    return _png(figure)


def _draw_losses(axes: Axes, history: Sequence[EpochRecord]) -> None:
    """Training loss and validation cross-entropy: two quantities, of which only the trends compare, not the levels."""
    epochs = [record.epoch for record in history]
    loss, bce = [record.loss for record in history], [record.bce for record in history]
    axes.plot(epochs, loss, color=BLUE, marker="o", label="training loss")
    axes.plot(epochs, bce, color=ORANGE, marker="s", label="validation cross-entropy (nats per pixel)")
    values = np.array([loss, bce])
    _style_axes(axes, "loss", title="Loss")
    if values.min() > 0 and values.max() > MIN_LOG_RATIO * values.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, float(values.min())))
    _add_legend(axes)


def _draw_scores(axes: Axes, history: Sequence[EpochRecord], best_epoch: int) -> None:
    epochs = [record.epoch for record in history]
    axes.plot(epochs, [record.iou for record in history], color=BLUE, marker="o", label="mean IoU")
    axes.plot(epochs, [record.f1 for record in history], color=GREEN, marker="^", label="mean F1")
    _style_axes(axes, "score, 0 to 1", title="Validation")
    axes.set_ylim(0, 1)
    for record in history:
        if record.epoch == best_epoch:
            label = f"best: epoch {best_epoch}, IoU {record.iou:.3f}"
            axes.plot(best_epoch, record.iou, color=ORANGE, marker="*", markersize=17, linestyle="", label=label)
    _add_legend(axes)


def _draw_rate(axes: Axes, history: Sequence[EpochRecord]) -> None:
    axes.plot([r.epoch for r in history], [r.learning_rate for r in history], color=GREEN, marker="o")
    _style_axes(axes, "learning rate", title="Learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:.2g}")


def _draw_classes(axes: Axes, history: Sequence[EpochRecord]) -> None:
    """IoU of each class; for a single class precision and recall."""
    names = list(history[-1].classes)
    axes.set_ylim(0, 1)
    if len(names) == 1:
        _draw_class(axes, history, names[0], "precision", color=BLUE, marker="o", label=f"{names[0]}: precision")
        _draw_class(axes, history, names[0], "recall", color=ORANGE, marker="s", label=f"{names[0]}: recall")
        _style_axes(axes, "score, 0 to 1", title="Precision and recall")
        _add_legend(axes)
    else:
        last = {name: history[-1].classes[name].get("iou") or 0.0 for name in names}
        drawn = set(sorted(names, key=last.__getitem__)[:MAX_CLASSES_DRAWN])
        foreground = [name for name in names if name != "background"]
        for index, name in enumerate(names):
            if name in drawn:
                colour = GREY if name not in foreground else _hex(foreground.index(name))
                _draw_class(axes, history, name, "iou", color=colour, marker="osv^D*Xph8"[index % 10], label=name[:20])
        _style_axes(axes, "IoU, 0 to 1", title="IoU of each class")
        _add_legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _hex(index: int) -> str:
    """The colour of a class in `mask.tif`."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(index))


def _draw_class(axes: Axes, history: Sequence[EpochRecord], name: str, score: str, **style: str) -> None:
    """One score of one class over epochs; a gap where it is not defined."""
    values = [record.classes.get(name, {}).get(score) for record in history]
    heights = [np.nan if value is None else value for value in values]
    axes.plot([record.epoch for record in history], heights, **style)  # type: ignore[arg-type]


def _figure(height: float, *, wide: float = WIDE, dpi: int = DPI) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    return Figure(figsize=(wide, height), dpi=dpi, layout=layout, facecolor="white")


def _style_axes(axes: Axes, y_label: str, *, x_label: str = "epoch", title: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.set_title(title, fontsize=14, loc="left", fontweight="bold")
    axes.tick_params(labelsize=11)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _add_legend(axes: Axes, **place: Any) -> None:
    """A semi-transparent legend; none when no line has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(edgecolor="none", framealpha=0.8, fontsize=11, **place)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
