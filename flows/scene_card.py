"""A scene as a card for Prefect's pages: its picture, its counts, and where its files are."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from pipeline.results import SceneReport

THUMBNAIL_PX = 256
"""Longest side of a picture, which as a JPEG takes some 20 kB of the server's database."""


def scene_card(report: SceneReport) -> str:
    """A scene in Markdown: picture, counts, and where its files are."""
    picture = thumbnail(Path(report.folder) / report.outputs.get("preview", "preview.png"))
    area_m2, seconds = sum(report.area_m2.values()), sum(report.seconds.values())
    files = [f"- {kind}: [{name}]({_link(report.folder, name)})" for kind, name in report.outputs.items()]
    lines = [
        f"## {report.scene}",
        *([f"![{report.scene}]({picture})"] if picture else []),
        f"{report.polygons:,} polygons, {area_m2:,.0f} m2, {report.pixels / 1e6:,.1f} Mpx in {seconds:,.1f} s",
        "\n".join(files),
    ]
    return "\n\n".join(lines) + "\n"


def thumbnail(path: Path) -> str | None:
    """A picture as a `data:` address of bounded size, None where there is none on this machine's disks."""
    if not path.is_file():
        return None
    from PIL import Image

    content = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        small.save(content, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _link(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if "://" in folder else (Path(folder).absolute() / name).as_uri()
