"""Runs over STAC: bytes that do not depend on how a scene was stored, and forecasts that come true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from conftest import MakeScene
from support import range_server
from support.models import RGB, write_checkpoint
from support.object_stores import Store

from pipeline.catalog.read import read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.cli import app as cli
from pipeline.config import SegmentSpec
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.model.predictor.protocol import InferenceSpec
from pipeline.results.report import SceneReport
from pipeline.run.dry_run import plan_run
from pipeline.run.scenes import segment_catalog
from pipeline.scene.spec import ReadingSpec

SMALL = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8),
    reading=ReadingSpec(threads=1),
    inference=InferenceSpec(device="cpu", precision="float32"),
)
TAKEN = datetime(2026, 5, 1, 10, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def predictor(model: Path) -> LoadedPredictor:
    return load_predictor(model, "cpu", precision="float32")


@pytest.fixture
def bundle(tmp_path: Path, make_scene: MakeScene) -> Path:
    """A catalog of the Item `town`, whose bands lie in a file each, among pictures and coarser versions."""
    pixels = np.random.default_rng(5).integers(1, 255, (3, 70, 90), dtype=np.uint8)
    pixels[:, :20, :30] = 0
    make_scene(pixels, name="stacked.tif", nodata=0, descriptions=RGB)
    item = pystac.Item(id="town", geometry=None, bbox=None, datetime=TAKEN, properties={})
    for name, band in zip(RGB, pixels, strict=True):
        make_scene(band, name=f"cat/town/{name}.tif")
        make_scene(band[::2, ::2], name=f"cat/town/{name}_coarse.tif")
        for suffix, gsd in (("_coarse", 1.0), ("", 0.5)):
            fields = {"bands": [{"name": f"{name}{suffix}", "eo:common_name": name, "nodata": 0}], "gsd": gsd}
            href = f"./{name}{suffix}.tif"
            item.add_asset(f"{name}{suffix}", pystac.Asset(href, media_type=pystac.MediaType.COG, extra_fields=fields))
    item.add_asset("visual", pystac.Asset("./none.tif", media_type=pystac.MediaType.COG, roles=["visual"]))
    catalog = pystac.Catalog(id="c", description="test")
    catalog.add_item(item)
    catalog.normalize_and_save(str(tmp_path / "cat"), pystac.CatalogType.SELF_CONTAINED)
    return tmp_path / "cat" / "catalog.json"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of the test's folder."""
    with range_server.serving(tmp_path) as served:
        yield served


def run(source: Path | str, out: Path, predictor: LoadedPredictor) -> SceneReport:
    entries = [*read_catalog([source], SMALL.catalog, SMALL.reading)]
    (report,) = segment_catalog(entries, out, predictor=predictor, spec=SMALL)
    return report


def pixels_of(folder: Path, name: str) -> bytes:
    with rasterio.open(folder / name) as dataset:
        return bytes(dataset.read().tobytes())


def test_a_scene_gives_the_same_mosaic_from_stac_wherever_it_lies_as_from_a_stacked_file(
    tmp_path: Path, bundle: Path, address: str, store: Store, predictor: LoadedPredictor
) -> None:
    for path in bundle.parent.rglob("*.*"):
        store.put(str(path.relative_to(tmp_path)), path)
    stacked = run(tmp_path / "stacked.tif", tmp_path / "out", predictor)
    here = run(bundle, tmp_path / "here", predictor)
    there = run(f"{address}/cat/catalog.json", tmp_path / "there", predictor)
    bucket = run(f"s3://{store.bucket}/cat/*/*.json", tmp_path / "bucket", predictor)
    assert [each.status for each in (stacked, here, there, bucket)] == ["done"] * 4
    for name in ("probability.tif", "mask.tif"):
        wanted = pixels_of(Path(stacked.folder), name)
        assert [pixels_of(Path(each.folder), name) == wanted for each in (here, there, bucket)] == [True] * 3
    assert [each.polygons for each in (here, there, bucket)] == [stacked.polygons] * 3
    assert (bucket.location, bucket.inputs.source) == (
        f"s3://{store.bucket}/cat/town/red.tif",
        f"s3://{store.bucket}/cat/town/town.json",
    )
    item = pystac.Item.from_file(str(Path(there.folder) / "item.json"))
    (link,) = item.get_links("derived_from")
    assert (item.id, item.datetime, link.href) == ("town", TAKEN, f"{address}/cat/town/town.json")
    assert run(f"{address}/cat/catalog.json", tmp_path / "there", predictor).status == "skipped"


def test_the_command_selects_by_date_and_a_file_of_settings_does_too(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def counts(*options: object) -> str:
        with pytest.raises(SystemExit):
            cli.main([str(each) for each in ("catalog", bundle, *options)])
        return capsys.readouterr().err.splitlines()[-1]

    assert counts("--since", "2026-05-01") == "1 runs, 0 done, 0 refused"
    assert counts("--since", "2026-05-01T10:30:01Z") == "0 runs, 0 done, 0 refused, 1 left out"
    settings = tmp_path / "run.yaml"
    settings.write_text("catalog:\n  since: 2026-05-01\n  until: 2026-05-01 10:29:59\n")
    assert counts("--config", settings) == "0 runs, 0 done, 0 refused, 1 left out"
    assert "catalog.since = 20260501: Input should be a valid string" in counts("--since", "20260501")


def test_a_dry_run_lists_stac_scenes_too(tmp_path: Path, bundle: Path, model: Path, predictor: LoadedPredictor) -> None:
    def planned(source: Path, **how: Path) -> list[str]:
        entries = read_catalog([source], CatalogSpec(since="2026-05-01"), SMALL.reading)
        models = [how["model"]] if "model" in how else []
        found = plan_run(entries, SMALL, models=models, out_dir=how.get("out"))
        return [f"{each.action} {each.entry.id}: {each.reason}" for each in found]

    assert planned(bundle)[0].startswith("runs town: 70 x 90 px of 0.5 m")
    assert planned(bundle, model=model)[0].startswith("runs town: fits the model, 70 x 90 px of 0.5 m, 3 bands")
    run(bundle, tmp_path / "out", predictor)
    assert planned(bundle, model=model, out=tmp_path / "out")[0].startswith("done town: an equal result is in")
    path = bundle.parent / "town" / "town.json"
    item = json.loads(path.read_text())
    del item["assets"]["blue"], item["assets"]["blue_coarse"]
    path.write_text(json.dumps(item))
    assert "refused town: " in planned(bundle, model=model)[0]
    assert "needs band(s) blue" in planned(bundle, model=model)[0]
