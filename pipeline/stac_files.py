"""The STAC documents of a folder of results: an Item in each scene's folder, the Collection beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.durable import write_whole
from pipeline.journal import finished_report
from pipeline.mosaic import MosaicReader
from pipeline.report import SceneReport
from pipeline.stac import COLLECTION, ITEM, KEY, Described, collection_of, item_of


def write_item(report: SceneReport) -> Path:
    """Describe a whole result by `item.json` in its folder.

    Raises:
        SceneError: its mosaic is gone or is none of ours.
        WorldError: the disk refuses.
    """
    folder = Path(report.folder)
    with MosaicReader(folder / report.outputs["probability"]) as mosaic:
        grid = mosaic.grid
    sizes = {name: (folder / name).stat().st_size for name in report.outputs.values()}
    return _write(folder / ITEM, item_of(report, grid, sizes))


def write_collection(out_dir: Path) -> Path | None:
    """Describe all whole results of a folder by `collection.json`, in the order of their names.

    Those of former runs are among them, so it tells what is there and not what a run did. What has no Item of its own,
    or one that was left behind by a former result, is not told.

    Returns:
        The file, or None where there is no result to tell of.

    Raises:
        WorldError: the disk refuses.
    """
    results = [*_described(out_dir)]
    return _write(out_dir / COLLECTION, collection_of(results)) if results else None


def _described(out_dir: Path) -> Iterator[Described]:
    for path in sorted(out_dir.glob(f"[!.]*/{ITEM}")):
        item = _read(path)
        found = finished_report(path.parent, _key_of(item))
        if found is not None:
            yield Described(item=item, report=SceneReport.from_json(found))


def _read(path: Path) -> Mapping[str, object]:
    """A JSON document; an empty one where it is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _key_of(item: Mapping[str, object]) -> str | None:
    """Content key of the result that an Item of ours describes."""
    properties = item.get("properties")
    key = properties.get(KEY) if isinstance(properties, dict) else None
    return key if isinstance(key, str) else None


def _write(path: Path, document: Mapping[str, object]) -> Path:
    """Write a document, unless it is there already."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
    return path
