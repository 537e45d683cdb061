"""Markdown artifact of a scene: its preview, its counts, and links to its files."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import quote

from pipeline.results import OUTPUTS, SceneReport
from pipeline.storage import is_file
from pipeline.text import markdown

THUMBNAIL_PX = 256
"""Longest side of a thumbnail, which takes about 20 kB of the server's database as a JPEG."""


def scene_markdown(report: SceneReport) -> str:
    """A scene in Markdown: thumbnail, counts, and links to its files."""
    picture = thumbnail(Path(report.folder) / OUTPUTS["preview"])
    area_m2, seconds = sum(report.area_m2.values()), sum(report.statistics.seconds.values())
    megapixels = report.statistics.pixels / 1e6
    files = [
        f"- {markdown(kind)}: [{markdown(name)}](<{_link(report.folder, name)}>)"
        for kind, name in report.outputs.names.items()
    ]
    lines = [
        f"## {markdown(report.scene)}",
        *([f"![{markdown(report.scene)}]({picture})"] if picture else []),
        f"{report.polygons:,} polygons, {area_m2:,.0f} m2, {megapixels:,.1f} Mpx in {seconds:,.1f} s",
        "\n".join(files),
    ]
    return "\n\n".join(lines) + "\n"


def thumbnail(path: Path) -> str | None:
    """A PNG as a `data:` URL of bounded size; None where the file is not on this machine, is a link, or is no PNG."""
    if not is_file(path):
        return None
    from PIL import Image

    content = io.BytesIO()
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(content, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _link(folder: str, name: str) -> str:
    """An address without characters that end a link in Markdown."""
    if "://" not in folder:
        return (Path(folder).absolute() / name).as_uri()
    return quote(f"{folder.rstrip('/')}/{name}", safe="/:%?&=+,;@~", errors="surrogateescape")
