"""Targets of fuzzing: for each kind of file that others write, seeds built by code, a mutation, and our reader."""

from __future__ import annotations

import csv
import functools
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from pipeline.errors import ModelError, SceneError
from support.checkpoint_bytes import Header, join_checkpoint, signed, split_checkpoint
from support.exported_archive import CARD, pack, small_members, with_label, write_card
from support.mutators import dump_json, mutate_bytes, mutate_json, mutate_tiff

Content = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of file."""

    make: Callable[[Random], bytes]
    """A mutated file."""
    read: Callable[[Path], object]
    """Our reader: succeeds, or raises a `ScenemillError`."""
    name: str
    """Name of the file in its folder."""


# Rasters


@functools.cache
def rasters() -> tuple[bytes, ...]:
    """TIFFs of several layouts, each of a few kilobytes."""
    layouts: list[Content] = [
        {"count": 3, "dtype": "uint8"},
        {"count": 1, "dtype": "uint16", "nodata": 0, "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"count": 2, "dtype": "float32", "compress": "deflate", "predictor": 3, "BIGTIFF": "YES"},
        {"count": 4, "dtype": "int16", "compress": "lzw", "interleave": "band", "ENDIANNESS": "BIG"},
    ]
    found = []
    for number, layout in enumerate(layouts):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.tif"
            transform = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
            profile = {"driver": "GTiff", "height": 40, "width": 50, "crs": "EPSG:32633", "transform": transform}
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile | layout) as dataset:
                pixels = np.random.default_rng(number).integers(0, 200, (layout["count"], 40, 50))
                dataset.write(pixels.astype(layout["dtype"]))
                for band in range(layout["count"]):
                    dataset.set_band_description(band + 1, ("red", "green", "blue", "nir")[band])
                if number == 0:
                    dataset.write_mask(pixels[0] > 30)
                    dataset.build_overviews([2])
                if number == 3:
                    dataset.colorinterp = [ColorInterp.undefined] * 3 + [ColorInterp.alpha]
                    dataset.scales, dataset.offsets = (0.1,) * 4, (1.0,) * 4
            found.append(path.read_bytes())
    return tuple(found)


def read_scene(path: Path) -> None:
    """The description of a scene, and a window of it."""
    from pipeline.scene import ReadingSpec, SceneReader, describe_scene

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = describe_scene(path, ReadingSpec(max_pixels=10**8))
        # A run reads the bands of its model; tens of thousands of bands take minutes.
        if len(scene.bands) > 1000:
            return
        with SceneReader(scene) as reader:
            reader.read(Window(0, 0, min(64, scene.grid.width), min(64, scene.grid.height)))


# Models


@functools.cache
def checkpoint() -> tuple[Header, bytes]:
    from support.models import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        return split_checkpoint(write_checkpoint(Path(folder) / "model.safetensors"))


def make_checkpoint(random: Random) -> bytes:
    """A checkpoint with another header, card or architecture, signed, or with other bytes."""
    header, data = checkpoint()
    kind = random.randrange(5)
    if kind == 0:
        return mutate_bytes(random, join_checkpoint(json.dumps(header).encode(), data))
    metadata = dict(header["__metadata__"])
    if kind == 1:
        entries = {key: header[key] for key in random.sample([*header], 3)}
        changed = mutate_json(random, entries)
        header = {**header, **(changed if isinstance(changed, dict) else {"a": changed})}
    else:
        key = "card" if kind < 4 else "architecture"
        metadata[key] = dump_json(random, mutate_json(random, json.loads(metadata[key]))).decode("utf-8", "replace")
    try:
        return signed({**header, "__metadata__": metadata}, data)
    except (ModelError, ValueError, TypeError, KeyError, RecursionError):
        return join_checkpoint(json.dumps(header).encode(), data)


def read_checkpoint(path: Path) -> None:
    from pipeline.model import describe_checkpoint, load_checkpoint

    load_checkpoint(path)
    describe_checkpoint(path)


def make_archive(random: Random) -> bytes:
    """An exported network with another graph, weights or card, with a label that fits, or with other bytes."""
    members, card = small_members(), json.dumps(CARD)
    kind = random.randrange(6)
    if kind == 0:
        return mutate_bytes(random, pack(with_label(members, card)))
    if kind == 1:
        card = dump_json(random, mutate_json(random, CARD)).decode("utf-8", "replace")
    elif kind == 2:
        name = random.choice([*members])
        members[name] = mutate_bytes(random, members[name])
    else:
        name = random.choice([name for name in members if name.endswith(".json")])
        members[name] = dump_json(random, mutate_json(random, json.loads(members[name])))
    return pack(with_label(members, card))


def read_archive(path: Path) -> None:
    """Import, which runs the network, and load, which a file with a fitting label reaches at once."""
    from pipeline.model import import_model
    from pipeline.model.exported import describe_exported
    from pipeline.model.exported.load import load_exported

    errors = []
    for read in (
        lambda: import_model(path, write_card(path.parent), path.with_name("out.pt2")),
        lambda: load_exported(path),
        lambda: describe_exported(path),
    ):
        try:
            read()
        except ModelError as error:
            errors.append(error)
    if errors:
        raise errors[0]


CARD_SEED: Content = {
    "bands": ["red", "green"], "classes": ["a", "b"], "activation": "softmax", "background": "a", "outputs": "logits",
    "temperature": 1.5, "threshold": 0.5, "dtype": "uint8", "resolution_m": 0.5, "stride": 4, "size_offset": 0,
    "tile_size": 64, "margin": 2, "receptive_field": 9, "training": {"seed": 1, "metrics": {"iou": 0.5}},
    "normalization": {"gain": [0.1, 0.2], "bias": [0, 1], "clip": [-1, 1]},
}  # fmt: skip


def read_card(path: Path) -> None:
    from pipeline.model.exported.load import read_card
    from pipeline.training.artifacts import card_page

    card = read_card(path)
    card_page(card).encode()


# Catalogs

ITEM: Content = {
    "type": "Feature", "stac_version": "1.0.0", "id": "item", "bbox": [10, 50, 11, 51],
    "links": [{"rel": "self", "href": "i.json"}],
    "geometry": {"type": "Polygon", "coordinates": [[[10, 50], [11, 50], [11, 51], [10, 51], [10, 50]]]},
    "properties": {"datetime": "2026-05-01T00:00:00Z", "eo:cloud_cover": 3, "proj:epsg": 32633},
    "assets": {
        "red": {"href": "red.tif", "type": "image/tiff; application=geotiff", "roles": ["data"],
                "eo:bands": [{"name": "B04", "common_name": "red"}],
                "raster:bands": [{"nodata": 0, "scale": 0.1, "offset": 1, "data_type": "uint16"}]},
        "rgb": {"href": "./rgb.tif", "bands": [{"name": "red"}, {"name": "green"}]},
    },
}  # fmt: skip
COLLECTION: Content = {
    "type": "Collection", "id": "c", "stac_version": "1.0.0", "description": "", "license": "x",
    "extent": {"spatial": {"bbox": [[10, 50, 11, 51]]}, "temporal": {"interval": [["2026-01-01T00:00:00Z", None]]}},
    "links": [{"rel": "item", "href": "item.json"}, {"rel": "child", "href": "stac.json"},
              {"rel": "next", "href": "n"}],
}  # fmt: skip
STAC = (ITEM, COLLECTION, COLLECTION | {"type": "Catalog"}, {"type": "FeatureCollection", "features": [ITEM, ITEM]})
TABLE: Content = {
    "type": "FeatureCollection",
    "features": [
        {"type": "Feature", "properties": {"path": "a.tif", "id": "a", "datetime": "2026-05-01"},
         "geometry": ITEM["geometry"]},
        {"type": "Feature", "properties": {"path": "sub/b.tif", "id": None}, "geometry": None},
    ],
}  # fmt: skip


def make_csv(random: Random) -> bytes:
    rows = [["path", "id", "datetime"], ["a.tif", "a", "2026-05-01"], ["sub/b.tif", "b", ""]]
    rows = mutate_json(random, rows)
    text = io.StringIO()
    csv.writer(text, delimiter=random.choice(",;\t")).writerows(
        [row if isinstance(row, list) else [row] for row in rows] if isinstance(rows, list) else [[rows]]
    )
    return mutate_bytes(random, text.getvalue().encode(errors="surrogatepass"), 2)


@functools.cache
def parquet() -> tuple[bytes, ...]:
    """A table of paths, and one of STAC Items."""
    import geopandas
    import shapely

    shape = shapely.box(10, 50, 11, 51)
    found = []
    for columns in (
        {"path": ["a.tif", "b.tif"], "id": ["a", "b"]},
        {"id": ["a", "b"], "assets": [json.dumps(ITEM["assets"])] * 2, "datetime": ["2026-05-01T00:00:00Z"] * 2},
    ):
        file = io.BytesIO()
        geopandas.GeoDataFrame(columns, geometry=[shape, shape], crs="EPSG:4326").to_parquet(file)
        found.append(file.getvalue())
    return tuple(found)


def read_catalog(path: Path) -> None:
    """All entries of a catalog, with filters that look at dates and footprints; no scene is opened for its own."""
    from pipeline.catalog import CatalogSpec
    from pipeline.catalog import read_catalog as read

    with warnings.catch_warnings(), mock.patch("pipeline.catalog.filters.describe_entry", side_effect=SceneError):
        warnings.simplefilter("ignore")
        for spec in (CatalogSpec(limit=50), CatalogSpec(limit=50, bbox=(10, 50, 11, 51), since="2020-01-01")):
            for entry in read([path], spec):
                assert entry.id.isprintable(), entry.id


# Settings


def make_settings(random: Random) -> bytes:
    import yaml

    from pipeline.config import SegmentSpec
    from pipeline.training import TrainSpec

    plain = json.loads(json.dumps(_plain(random.choice((SegmentSpec(), TrainSpec())))))
    sections = {key: plain[key] for key in random.sample([*plain], 3)}
    changed = mutate_json(random, sections)
    try:
        text = yaml.safe_dump(changed, sort_keys=False).encode(errors="surrogatepass")
    except RecursionError:
        return dump_json(random, changed)
    return mutate_bytes(random, text) if random.randrange(2) else dump_json(random, changed)


def _plain(spec: Any) -> Content:
    from dataclasses import asdict

    return asdict(spec)


def read_settings(path: Path) -> None:
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.errors import SettingsError
    from pipeline.training import TrainSpec

    errors = []
    for kind in (SegmentSpec, TrainSpec):
        try:
            load_settings(kind, path)
        except SettingsError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# Records of runs


@functools.cache
def records() -> dict[str, Any]:
    """Every JSON document that a run writes, by its name."""
    from pipeline.config import SegmentSpec, load_settings
    from pipeline.model import ModelCard, Normalization
    from pipeline.segment import segment_scene
    from support.models import brightness

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        path.write_bytes(rasters()[0])
        card = ModelCard(bands=("red",), classes=("roof",), normalization=Normalization())
        spec = load_settings(SegmentSpec, None, ["tiling.tile_size=32"])
        segment_scene(path, Path(folder) / "out" / "scene", predictor=brightness, card=card, spec=spec)
        found = {file.name: json.loads(file.read_bytes()) for file in (Path(folder) / "out").rglob("*.json")}
    run = {"scene": "scene", "run": "r", "status": "done", "location": "a.tif", "polygons": 1, "area_m2": {"roof": 1.0}}
    return found | {
        "run.json": {"writes": 1, "counts": {}, "runs": [{"run": "r", "write": 1}], "scenes": [run]},
        "quarantine.json": {"scenes": [{"scene": "scene", "location": "a.tif", "reason": "x", "since": "2026-01-01",
                                        "source": {"a.tif": "1 bytes"}, "inputs": "ab"}]},
        "lock.json": {"holder": "x", "host": "y", "process": 1, "since": "2026-01-01T00:00:00Z", "renewed": 0},
        "merge.json": {"file": "polygons.gpkg", "file_bytes": 1, "key": "a"},
        "stage.json": {"sha256": "", "key": "k", "facts": {"cores": [[0, 0, 32, 32]], "proof": {}, "threshold": 0.5},
                       "files": {"a.tif": "0" * 64}},
    }  # fmt: skip


def make_record(random: Random) -> bytes:
    """A line with the name of a document, and the document."""
    name = random.choice(sorted(records()))
    return name.encode() + b"\n" + dump_json(random, mutate_json(random, records()[name]))


def read_record(path: Path) -> None:
    """The document, by every reader of ours that may meet it."""
    from pipeline.merge.record import previous_merge
    from pipeline.results import open_results
    from pipeline.results.lease import LockRecord
    from pipeline.results.report import read_report
    from pipeline.results.stac_files import _parse
    from pipeline.results.stac_item import grid_description
    from pipeline.results.stage_records import StageRecords
    from pipeline.results.stored_scene import StoredReport
    from pipeline.run.quarantine import Quarantine
    from pipeline.run.record import _joined, _parsed
    from pipeline.stages.region_records import _plan_of
    from pipeline.storage import StoredDocument

    _, _, content = path.read_bytes().partition(b"\n")
    folder = path.parent / "results"
    (folder / "scene" / "stages").mkdir(parents=True)
    documents = open_results(folder).documents
    read_report(content, "scene")
    StoredReport.read(content, "scene")
    grid_description(_parse(content))
    _joined({"run": "s"}, [], _parsed(content), 0)
    LockRecord.read(StoredDocument(content=content, etag="1", age_s=0.0))
    for kind in ("merge.json", "quarantine.json"):
        (folder / kind).write_bytes(content)
    previous_merge(documents)
    stages = StageRecords(folder / "scene")
    stages.record("done", "k", {})
    for record in (folder / "scene").rglob("*.json"):
        record.write_bytes(_resigned(content))
    if (facts := stages.find("done", "k")) is not None:
        _plan_of(facts)
    stages.digests()
    Quarantine(folder, inputs="ab", drivers=("GTiff",))


def _resigned(content: bytes) -> bytes:
    """A stage record with a digest that fits, so that readers look at the rest."""
    from pipeline.storage import sha256_of_json

    try:
        found = json.loads(content)
        rest = {key: value for key, value in found.items() if key != "sha256"}
        return json.dumps({"sha256": sha256_of_json(rest), **rest}).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def _json(*seeds: Any) -> Callable[[Random], bytes]:
    return lambda random: dump_json(random, mutate_json(random, random.choice(seeds)))


def make_document(random: Random) -> bytes:
    return mutate_bytes(random, random.choice(parquet()))


TARGETS: dict[str, Target] = {
    "tiff": Target(name="a.tif", read=read_scene, make=lambda random: mutate_tiff(random, random.choice(rasters()))),
    "checkpoint": Target(name="model.safetensors", read=read_checkpoint, make=make_checkpoint),
    "archive": Target(name="network.pt2", read=read_archive, make=make_archive),
    "card": Target(name="card.yaml", read=read_card, make=_json(CARD_SEED)),
    "csv": Target(name="scenes.csv", read=read_catalog, make=make_csv),
    "geojson": Target(name="scenes.geojson", read=read_catalog, make=_json(TABLE)),
    "geoparquet": Target(name="scenes.parquet", read=read_catalog, make=make_document),
    "stac": Target(name="stac.json", read=read_catalog, make=_json(*STAC)),
    "settings": Target(name="settings.yaml", read=read_settings, make=make_settings),
    "records": Target(name="record", read=read_record, make=make_record),
}
"""By the name that the command knows."""
