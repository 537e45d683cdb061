"""STAC documents of a folder of results: an Item in each scene's folder, and the Collection that links them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.concurrency import map_concurrently
from pipeline.errors import TransientError
from pipeline.mosaic import MosaicReader
from pipeline.results.documents import Documents
from pipeline.results.report import SceneReport
from pipeline.results.results import Results
from pipeline.results.scenes import FindFinished
from pipeline.results.stac_item import (
    COLLECTION,
    ITEM,
    KEY,
    ItemSource,
    build_item,
    collection_of,
    grid_description,
    is_valid_item,
)
from pipeline.storage import gdal_env
from pipeline.text import read_json

MERGE_RECORD = "merge.json"
"""Name of the record of the merged polygons of all scenes."""
MAX_CONCURRENT_READS = 16


def write_item(documents: Documents, report: SceneReport) -> None:
    """Write a complete result's `item.json` into its folder; the mosaic is not opened if the Item is up to date.

    Raises:
        SceneError: the mosaic is missing or was not written by Scenemill.
        TransientError: disk or network fail.
    """
    name = f"{report.scene}/{ITEM}"
    outputs = {*report.outputs.names.values()}
    sizes = report.outputs.sizes or documents.sizes(report.scene)
    sizes = {file: size for file, size in sizes.items() if file in outputs}
    previous = documents.read(name)
    grid = grid_description(_parse(previous))
    if grid is not None and _to_json(build_item(report, grid, sizes)) == previous:
        return
    location = documents.location(f"{report.scene}/{report.outputs.names['probability']}")
    with gdal_env(location, sidecars=()), MosaicReader(Path(location.gdal_path)) as mosaic:
        grid = mosaic.grid
    with documents.lock():
        documents.write(name, _to_json(build_item(report, grid, sizes)))


def write_collection(results: Results) -> None:
    """Write the `collection.json` of all complete results in a folder, in the order of their names.

    Results of earlier runs are included: it describes the folder, not one run. A result without an Item, or whose Item
    describes a previous result, is left out. Without any result, nothing is written.

    Raises:
        TransientError: disk or network fail.
    """
    documents = results.documents
    with documents.lock():
        if described := [*_described(results)]:
            content = _to_json(collection_of(described, _read(documents, MERGE_RECORD)))
            if documents.read(COLLECTION) != content:
                documents.write(COLLECTION, content)


def _described(results: Results) -> Iterator[ItemSource]:
    """The complete results, in order; several are read concurrently, since stores have a high latency."""
    found = map_concurrently(
        lambda scene: _describe(results.documents, *scene),
        results.scenes.iter_finished(),
        max_workers=MAX_CONCURRENT_READS,
    )
    yield from (each for each in found if each is not None)


def _describe(documents: Documents, scene_id: str, find_finished: FindFinished) -> ItemSource | None:
    item = _read(documents, f"{scene_id}/{ITEM}")
    key = _key_of(item)
    found = find_finished(key) if key else None
    return None if found is None or not is_valid_item(item, found) else ItemSource(item=item, report=found)


def _read(documents: Documents, name: str) -> Mapping[str, object]:
    """A JSON object; an empty one if it is missing or invalid."""
    try:
        return _parse(documents.read(name))
    except TransientError:
        return {}


def _parse(content: bytes | None) -> Mapping[str, object]:
    try:
        document = read_json(content or b"")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _key_of(item: Mapping[str, object]) -> str | None:
    """Content key of the result that an Item of Scenemill describes."""
    properties = item.get("properties")
    key = properties.get(KEY) if isinstance(properties, dict) else None
    return key if isinstance(key, str) else None


def _to_json(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
