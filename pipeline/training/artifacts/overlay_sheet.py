"""Overlay sheet: panels side by side with titles, legends and a caption."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.training.artifacts.overlay_panels import GAP, STRIPE, LegendKey, Panel

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

PAPER, INK, PALE = (255, 255, 255), (32, 32, 32), (110, 110, 110)
EDGE, BETWEEN = 16, 12
"""Screen pixels around the sheet, and between panels."""
MIN_COLUMN = 260
"""Smallest width of a column, so that its legend fits."""
CAPTION, TITLE, LINE = 44, 24, 22
"""Heights in screen pixels: of the caption, a title, a line of a legend."""
MAX_KEYS = 12
"""Entries of a legend; further ones are only counted."""


def render_sheet(panels: Sequence[Panel], *, caption: str, note: str) -> Image:
    """The sheet: panels of one size from left to right, below a bold caption and a pale note."""
    from PIL import Image, ImageDraw

    height, width = panels[0].colours.shape[:2]
    column = max(width, MIN_COLUMN)
    legends = [_rows(panel.keys, column) for panel in panels]
    below = LINE * max(len(rows) + (panel.ramp is not None) for rows, panel in zip(legends, panels, strict=True))
    size = (2 * EDGE + len(panels) * (column + BETWEEN) - BETWEEN, CAPTION + TITLE + height + 8 + below + EDGE)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_caption(draw, caption, note, size[0] - 2 * EDGE)
    for index, (panel, rows) in enumerate(zip(panels, legends, strict=True)):
        left, top = EDGE + index * (column + BETWEEN), CAPTION + TITLE
        draw.text((left, top - 6), panel.title, INK, font=_font(14), anchor="ls")
        sheet.paste(Image.fromarray(panel.colours), (left, top))
        top += height + 8
        if panel.ramp is not None:
            _draw_ramp(sheet, panel, (left, top), width=column)
            top += LINE
        _draw_keys(draw, rows, (left, top))
    return sheet


def _write_caption(draw: ImageDraw, caption: str, note: str, width: int) -> None:
    """Caption and note on one line; the caption is shortened when both do not fit."""
    bold, plain = _font(16, bold=True), _font(14)
    left = width - round(plain.getlength(note)) - 2 * BETWEEN
    caption = _shortened(caption, bold, max(left, width // 3))
    draw.text((EDGE, CAPTION - 16), caption, INK, font=bold, anchor="ls")
    draw.text((EDGE + bold.getlength(caption) + 2 * BETWEEN, CAPTION - 16), note, PALE, font=plain, anchor="ls")


def _rows(keys: Sequence[LegendKey], width: int) -> list[list[tuple[LegendKey, int]]]:
    """The legend broken into rows: each entry with its offset from the left."""
    shown = list(keys[:MAX_KEYS])
    if len(keys) > MAX_KEYS:
        shown.append(LegendKey(name=f"and {len(keys) - MAX_KEYS} more", colour=PAPER))
    rows: list[list[tuple[LegendKey, int]]] = []
    place = width
    for key in shown:
        length = 36 + round(_font(13).getlength(_name(key)))
        if place + length - 14 > width:
            rows.append([])
            place = 0
        rows[-1].append((key, place))
        place += length
    return rows


def _draw_keys(draw: ImageDraw, rows: Sequence[Sequence[tuple[LegendKey, int]]], corner: tuple[int, int]) -> None:
    for number, row in enumerate(rows):
        for key, place in row:
            left, top = corner[0] + place, corner[1] + number * LINE + 3
            draw.rectangle((left, top, left + 14, top + 14), fill=key.colour, outline=PALE)
            for start in range(0, 15, STRIPE // 2) if key.striped else ():
                draw.line((left, top + start, left + start, top), fill=GAP[1])
            draw.text((left + 20, top + 12), _name(key), INK, font=_font(13), anchor="ls")


def _draw_ramp(sheet: Image, panel: Panel, corner: tuple[int, int], *, width: int) -> None:
    """A colour bar from 0 to 1, with a mark and its value at the threshold."""
    from PIL import Image, ImageDraw

    assert panel.ramp is not None
    draw, font = ImageDraw.Draw(sheet), _font(13)
    left, top = corner[0] + 14, corner[1] + 3
    length = min(width - 150, 330)
    bar = panel.ramp[np.linspace(0, 255, length).astype(np.uint8)]
    sheet.paste(Image.fromarray(np.repeat(bar[None], 14, axis=0)), (left, top))
    draw.text((corner[0], top + 12), "0", INK, font=font, anchor="ls")
    draw.text((left + length + 5, top + 12), "1", INK, font=font, anchor="ls")
    if panel.mark is not None:
        place = left + round(panel.mark * (length - 1))
        draw.line((place, top - 4, place, top + 17), fill=INK, width=3)
        draw.line((place, top - 3, place, top + 16), fill=PAPER, width=1)
        draw.text((left + length + 20, top + 12), f"decided at {panel.mark:.2f}", PALE, font=font, anchor="ls")


def _name(key: LegendKey) -> str:
    return _shortened(key.name, _font(13), 200)


def _shortened(text: str, font: FreeTypeFont, width: float) -> str:
    """The text, or its beginning with an ellipsis, at most `width` screen pixels long."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, which matplotlib ships and which covers most alphabets."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
