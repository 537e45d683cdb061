"""What a run asks an object store for: a finished scene costs few requests, and every guarantee is still kept."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import rasterio
from conftest import MakeScene
from rasterio.windows import Window
from support.object_stores import Store

import pipeline.run.scenes
from pipeline.catalog.entry import CatalogEntry
from pipeline.catalog.read import read_catalog
from pipeline.config import RunSpec, SegmentSpec
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.protocol import InferenceSpec
from pipeline.results.report import SceneReport
from pipeline.results.results import open_results
from pipeline.results.stac_files import write_collection
from pipeline.run.models import load_run_models
from pipeline.run.scenes import segment_catalog
from pipeline.scene.describe import describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.scene.spec import ReadingSpec
from pipeline.storage.location import Location
from pipeline.storage.remote import remote_version
from pipeline.storage.s3_folder import StoreFolder

SKIPPED = {
    # the scene: version, sidecars, header
    "GET in/SCENE.tif": 2,
    "LIST in/SCENE.tif.": 1,
    # its result: what vouches for it, what is there, whether its Item is as it would be; read again for the Collection
    "GET out/SCENE/report.json": 2,
    "GET out/SCENE/item.json": 2,
    "LIST out/SCENE/": 1,
}
"""Requests for a scene that a run skips; each further one is paid for every scene of a catalog, every night."""
OF_A_RUN = 16
"""Requests of the same run that are not for any scene: its catalog, its documents, and what is listed for all."""


def kinds(lines: list[str], store: Store) -> Counter[str]:
    """Requests by method and name; a listing by its prefix."""
    found: Counter[str] = Counter()
    for line in lines:
        method, path, *_ = line.split(" ")
        listed = re.search(r"prefix=([^&]*)", path)
        name = path.partition("?")[0].removeprefix(f"/{store.bucket}").lstrip("/")
        found[f"LIST {listed[1].replace('%2F', '/')}" if listed else f"{method} {name}"] += 1
    return found


def run(store: Store, model: str, **settings: int) -> list[SceneReport]:
    spec = SegmentSpec(
        reading=ReadingSpec(threads=1),
        tiling=TilingSpec(tile_size=32),
        inference=InferenceSpec(device="cpu", precision="float32"),
        run=RunSpec(retries=0, **settings),
    )
    predictor = load_run_models([model], spec)
    entries = [*read_catalog([f"s3://{store.bucket}/in/"])]
    return [*segment_catalog(entries, f"s3://{store.bucket}/out", predictor=predictor, spec=spec)]


def test_a_finished_scene_costs_few_requests(store: Store, make_scene: MakeScene, model: str) -> None:
    scenes = ("north", "south", "west")
    for seed, name in enumerate(scenes):
        store.put(f"in/{name}.tif", make_scene(name=f"{name}.tif", seed=seed))
    assert [report.status for report in run(store, model)] == ["done"] * 3
    before = len(store.requests)
    assert [report.status for report in run(store, model)] == ["skipped"] * 3
    request_counts = kinds(store.requests[before:], store)
    for name in scenes:
        of_scene = {kind: count for kind, count in request_counts.items() if name in kind}
        assert of_scene == {kind.replace("SCENE", name): count for kind, count in SKIPPED.items()}
    assert request_counts.total() - len(scenes) * sum(SKIPPED.values()) <= OF_A_RUN


@pytest.mark.parametrize("harm", ["scene", "output", "report"])
def test_a_scene_is_run_again_if_it_or_its_result_has_changed(
    store: Store, make_scene: MakeScene, model: str, harm: str
) -> None:
    """Of equal sizes, so that only versions tell."""
    address = store.put("in/town.tif", make_scene(name="town.tif", seed=0))
    assert [report.status for report in run(store, model)] == ["done"]
    if harm == "scene":
        assert store.put("in/town.tif", make_scene(name="town.tif", seed=1)) == address
    elif harm == "output":
        store.put("out/town/mask.tif", bytes(len(store.get("out/town/mask.tif"))))
    else:
        store.client.delete_object(Bucket=store.bucket, Key="out/town/report.json")
    assert [report.status for report in run(store, model)] == ["done"]


@pytest.mark.parametrize("harm", ["gone", "torn", "of another place", "of another result"])
def test_the_item_of_a_finished_scene_is_repaired(store: Store, make_scene: MakeScene, model: str, harm: str) -> None:
    store.put("in/town.tif", make_scene(name="town.tif"))
    run(store, model)
    whole = store.get("out/town/item.json")
    if harm == "gone":
        store.client.delete_object(Bucket=store.bucket, Key="out/town/item.json")
    else:
        item = json.loads(whole)
        item["properties"] |= {"proj:code": "EPSG:32634"} if harm == "of another place" else {"scenemill:key": "0"}
        store.put("out/town/item.json", whole[:-9] if harm == "torn" else json.dumps(item, indent=2).encode() + b"\n")
    assert [report.status for report in run(store, model)] == ["skipped"]
    assert store.get("out/town/item.json") == whole


# Before its turn


def test_finished_scenes_are_looked_up_concurrently(
    store: Store, make_scene: MakeScene, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)

    def wait_for_both(location: Location) -> str | None:
        together.wait(20)
        return remote_version(location)

    scenes = ("north", "south", "west")
    for seed, name in enumerate(scenes):
        store.put(f"in/{name}.tif", make_scene(name=f"{name}.tif", seed=seed))
    run(store, model)
    monkeypatch.setattr("pipeline.storage.probe.remote_version", wait_for_both)
    assert [(report.scene, report.status) for report in run(store, model)] == [(name, "skipped") for name in scenes]


def test_what_cannot_be_looked_up_before_its_turn_is_left_to_it(
    store: Store, make_scene: MakeScene, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a fault of ours: it stops no other scene."""
    turns: list[str] = []
    look = pipeline.run.one_scene.skip_entry

    def shaky(entry: CatalogEntry, *args: Any, **kwargs: Any) -> SceneReport | None:
        turns.append(entry.id)
        if entry.id == "north":
            raise RuntimeError
        return look(entry, *args, **kwargs)

    for name in ("north", "south"):
        store.put(f"in/{name}.tif", make_scene(name=f"{name}.tif"))
    run(store, model)
    monkeypatch.setattr(pipeline.run.scenes, "skip_entry", shaky)
    assert [report.status for report in run(store, model)] == ["skipped", "skipped"]
    assert sorted(turns) == ["north", "south"]


def test_leftovers_of_a_killed_run_next_to_a_finished_scene_are_removed(
    store: Store, make_scene: MakeScene, model: str
) -> None:
    store.put("in/town.tif", make_scene(name="town.tif"))
    run(store, model)
    names = store.names("out/town/")
    store.put("out/town/.partial/mask.tif", b"rest")
    assert [report.status for report in run(store, model)] == ["skipped"]
    assert store.names("out/town/") == names


def test_a_run_that_is_stopped_looks_no_further(store: Store, make_scene: MakeScene, model: str) -> None:
    for number in range(30):
        store.put(f"in/{number:02}.tif", make_scene(name="lost.tif", crs=None))
    reports = run(store, model, max_failures=1)
    assert [report.status for report in reports] == ["failed"] + ["not run"] * 29
    assert not any(line.startswith(f"GET /{store.bucket}/in/20.tif") for line in store.requests)


# Sidecars


def validity_of(address: str) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which pixels of a scene are data."""
    scene = describe_scene(address)
    with SceneReader(scene) as reader:
        return reader.read(Window(0, 0, scene.grid.width, scene.grid.height))[1]


@pytest.mark.parametrize("suffix", [".msk", ".MSK"])
@pytest.mark.parametrize("listing", ["allowed", "refused"])
def test_a_mask_sidecar_of_a_scene_is_used(store: Store, make_scene: MakeScene, suffix: str, listing: str) -> None:
    path = make_scene(name="side.tif")
    address = store.put("in/side.tif", path)
    if listing == "refused":
        store.fail("GET list-type=2 403 99")
    assert validity_of(address).all()
    wanted = np.tri(*rasterio.open(path).shape, dtype=bool)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(wanted)
    store.put(f"in/side.tif{suffix}", path.with_name("side.tif.msk"))
    np.testing.assert_array_equal(validity_of(address), wanted)


def test_other_files_with_the_name_of_a_scene_as_prefix_are_no_sidecars(store: Store, make_scene: MakeScene) -> None:
    address = store.put("in/side.tif", make_scene(name="side.tif"))
    for name in ("in/side.tif.json", "in/side.tiff", "in/side.tif.d/side.tif.msk"):
        store.put(name, b"{}")
    before = len(store.requests)
    describe_scene(address)
    assert kinds(store.requests[before:], store) == {"GET in/side.tif": 2, "LIST in/side.tif.": 1}


# All results at one look


def test_a_result_that_came_after_the_look_at_all_is_found(store: Store, make_scene: MakeScene, model: str) -> None:
    store.put("in/town.tif", make_scene(name="town.tif", seed=0))
    key = run(store, model)[0].inputs.content_key
    found = dict(open_results(f"s3://{store.bucket}/out").scenes.iter_finished())
    store.put("in/town.tif", make_scene(name="town.tif", seed=1))
    later = run(store, model)[0].inputs.content_key
    assert found["town"](later) is not None
    assert found["town"](key) is None


def test_folders_of_thousands_are_not_listed(
    store: Store, make_scene: MakeScene, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("in/town.tif", make_scene(name="town.tif"))
    run(store, model)
    collection = store.get("out/collection.json")
    pages = StoreFolder._pages

    def one_by_one(folder: StoreFolder, prefix: str, **arguments: str) -> object:
        """A page of one object, as if a thousand of its folder were in it, and none after it."""
        page = next(iter(pages(folder, prefix, **arguments)))
        if prefix == "out/" and not arguments:
            yield {**page, "IsTruncated": True, "Contents": page["Contents"][2:3]}
            pytest.fail("went on")
        yield page

    monkeypatch.setattr(StoreFolder, "_pages", one_by_one)
    results = open_results(f"s3://{store.bucket}/out")
    results.documents.remove("collection.json")
    write_collection(results)
    assert store.get("out/collection.json") == collection
