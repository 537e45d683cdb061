"""Pairing of label files and images by file name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import LabelError
from pipeline.storage import resolve_location

_SUFFIX = re.compile(
    r"\.(tiff?|gtiff|png|jpe?g|jp2|vrt|gpkg|(geo)?json|(geo)?parquet|fgb|shp)(?=[._-]|$)", re.IGNORECASE
)


def pair_labels(files: Sequence[Path], image: str) -> tuple[Path, ...]:
    """The label files with the stem of an image, or else with its stem without inner suffixes.

    Of several, those with the longest common folder path: `val/masks/1.png` for `val/images/1.png`. The image itself
    may be among `files`; `image` is its location or stem.
    """
    others = [p for p in files if p.absolute() != Path(image).absolute()]
    stem = stem_of(image)
    found = [p for p in others if p.stem == stem] or [p for p in others if plain_stem(p.stem) == plain_stem(stem)]
    if len(found) > 1:
        shared = [len(os.path.commonpath([p.absolute(), Path(image).absolute()])) for p in found]
        found = [p for p, length in zip(found, shared, strict=True) if length == max(shared)]
    return tuple(found)


def pair_all(files: Sequence[Path], images: Sequence[str], place: str) -> dict[str, tuple[Path, ...]]:
    """The label file of each image, or an empty map when no image has one; refuses any other number of files."""
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(plain_stem(path.stem), []).append(path)
    found = {image: pair_labels(by_stem.get(plain_stem(stem_of(image)), []), image) for image in images}
    if not any(found.values()):
        return {}
    wrong = {image: paths for image, paths in found.items() if len(paths) != 1}
    for image, paths in wrong.items():
        names = ", ".join(str(p) for p in paths) or "none"
        more = f" (as for {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise LabelError(
            f"{place}: the scene {stem_of(image)!r} needs one label file of its name, but there is {names}{more}; "
            "add or remove files, or leave the scene out"
        )
    return found


def stem_of(image: str) -> str:
    """The file name of an image without folder and suffix; a stem is returned unchanged.

    >>> stem_of("images/Amazon_5.tiff_50.tiff"), stem_of("Amazon_5.tiff_50"), stem_of("s3://bucket/a.tif")
    ('Amazon_5.tiff_50', 'Amazon_5.tiff_50', 'a')
    """
    if "://" in image:
        return resolve_location(image).stem
    name = Path(image).name
    return name[: -len(Path(name).suffix)] if _SUFFIX.fullmatch(Path(name).suffix) else name


def plain_stem(stem: str) -> str:
    """A stem without inner file suffixes.

    >>> plain_stem("Amazon_5.tiff_50"), plain_stem("a.tif"), plain_stem("b.2024")
    ('Amazon_5_50', 'a', 'b.2024')
    """
    return _SUFFIX.sub("", stem)
