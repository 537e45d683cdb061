"""The STAC documents of a folder of results: an Item in each scene's folder, the Collection beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.concurrency import map_concurrently
from pipeline.errors import TransientError
from pipeline.mosaic import MosaicReader
from pipeline.results.local import Results
from pipeline.results.publish import FindFinished
from pipeline.results.report import SceneReport
from pipeline.results.stac_item import COLLECTION, ITEM, KEY, ItemSource, build_item, collection_of, grid_description

MERGE_RECORD = "merge.json"
"""Says what is in the file of the polygons of all scenes."""
AT_ONCE = 16
"""Results that are looked up at the same time."""


def write_item(results: Results, report: SceneReport) -> None:
    """Describe a whole result by `item.json` in its folder; the mosaic is not opened where the Item is there already.

    Raises:
        SceneError: its mosaic is gone or is none of ours.
        TransientError: disk or network refuse.
    """
    name = f"{report.scene}/{ITEM}"
    outputs = {*report.outputs.values()}
    sizes = report.sizes or results.sizes(report.scene)
    sizes = {file: size for file, size in sizes.items() if file in outputs}
    former = results.read(name)
    grid = grid_description(_parsed(former))
    if grid is not None and _content(build_item(report, grid, sizes)) == former:
        return
    place = results.place(f"{report.scene}/{report.outputs['probability']}")
    with place.environment(ignore_sidecars=True), MosaicReader(Path(place.gdal_path)) as mosaic:
        grid = mosaic.grid
    with results.turn():
        results.write(name, _content(build_item(report, grid, sizes)))


def write_collection(results: Results) -> None:
    """Describe all whole results of a folder by `collection.json`, in the order of their names.

    Those of former runs are among them, so it tells what is there and not what a run did. What has no Item of its own,
    or one that was left behind by a former result, is not told. Where there is no result, nothing is written.

    Raises:
        TransientError: disk or network refuse.
    """
    with results.turn():
        if described := [*_described(results)]:
            _write(results, COLLECTION, collection_of(described, _read(results, MERGE_RECORD)))


def _described(results: Results) -> Iterator[ItemSource]:
    """The whole results, in order; several are looked up at once, since a store answers slowly."""
    found = map_concurrently(lambda scene: _describe(results, *scene), results.surveyed(), most=AT_ONCE)
    yield from (each for each in found if each is not None)


def _describe(results: Results, scene_id: str, find_finished: FindFinished) -> ItemSource | None:
    item = _read(results, f"{scene_id}/{ITEM}")
    key = _key_of(item)
    found = find_finished(key) if key else None
    return None if found is None else ItemSource(item=item, report=SceneReport.from_json(found))


def _read(results: Results, name: str) -> Mapping[str, object]:
    """A JSON document; an empty one where it is none."""
    try:
        return _parsed(results.read(name))
    except TransientError:
        return {}


def _parsed(content: bytes | None) -> Mapping[str, object]:
    try:
        document = json.loads(content or b"")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _key_of(item: Mapping[str, object]) -> str | None:
    """Content key of the result that an Item of ours describes."""
    properties = item.get("properties")
    key = properties.get(KEY) if isinstance(properties, dict) else None
    return key if isinstance(key, str) else None


def _write(results: Results, name: str, document: Mapping[str, object]) -> None:
    """Write a document, unless it is there already."""
    content = _content(document)
    if results.read(name) != content:
        results.write(name, content)


def _content(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
