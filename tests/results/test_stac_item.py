"""STAC documents of results: valid for pystac, with relative links, and unchanged by reruns."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest
import rasterio
from affine import Affine
from conftest import MakeScene
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension
from pystac.validation import validate_dict
from support.models import write_checkpoint, write_damaged

from pipeline.catalog.read import list_scenes, read_catalog
from pipeline.config import SegmentSpec
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.merge.run import merge_scenes
from pipeline.merge.spec import MergeSpec
from pipeline.model.card import ModelCard, Normalization
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.mosaic.writer import MosaicSpec
from pipeline.results import OUTPUTS
from pipeline.results.report import SceneReport
from pipeline.results.results import open_results
from pipeline.results.stac_files import write_collection
from pipeline.results.stac_item import ASSETS, EXTENSIONS
from pipeline.results.stac_model import architecture_of, model_fields
from pipeline.run.scenes import segment_catalog
from pipeline.scene.spec import ReadingSpec

SMALL = SegmentSpec(tiling=TilingSpec(tile_size=32, overlap=8), reading=ReadingSpec(threads=1))
DEGREES = Affine(0.0001, 0, 179.999, 0, -0.0001, -17)

Run = Callable[..., list[SceneReport]]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoadedPredictor:
    path = write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors", classes=("roof", "old road"))
    return load_predictor(path, "cpu", precision="float32")


@pytest.fixture
def run(tmp_path: Path, predictor: LoadedPredictor) -> Run:
    """Segment scenes into a folder."""

    def segment(
        *scenes: Path, spec: SegmentSpec = SMALL, model: LoadedPredictor = predictor, out: Path = tmp_path / "out"
    ) -> list[SceneReport]:
        return [*segment_catalog(list_scenes(scenes), out, predictor=model, spec=spec)]

    return segment


def documents(out: Path) -> dict[str, bytes]:
    paths = [out / "collection.json", *out.glob("*/item.json")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def item_in(out: Path, name: str) -> pystac.Item:
    return pystac.Item.from_file(str(out / name / "item.json"))


def check_core(document: dict[str, Any]) -> None:
    """Against pystac's own schemas; those of extensions lie on the network."""
    validate_dict(document, extensions=[])


# The documents and their links


def test_pystac_finds_every_scene_of_a_run_and_its_files(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    run(make_scene(name="town.tif"), make_scene(name="isle.tif", crs="EPSG:4326", transform=DEGREES))
    collection = pystac.Collection.from_file(str(tmp_path / "out" / "collection.json"))
    check_core(collection.to_dict(include_self_link=False))
    items = {item.id: item for item in collection.get_items()}
    assert sorted(items) == ["isle", "town"]
    for item in items.values():
        check_core(item.to_dict(include_self_link=False))
        assert item.get_collection() is collection
        assert item.get_root() is collection
        for asset in item.assets.values():
            assert Path(asset.get_absolute_href() or "").is_file()


def test_the_polygons_of_all_scenes_are_an_asset_of_the_collection(
    run: Run, make_scene: MakeScene, tmp_path: Path
) -> None:
    run(make_scene(name="town.tif"), make_scene(name="isle.tif", crs="EPSG:4326", transform=DEGREES))
    merge_scenes(tmp_path / "out", MergeSpec(output="parquet"))
    collection = pystac.Collection.from_file(str(tmp_path / "out" / "collection.json"))
    check_core(collection.to_dict(include_self_link=False))
    (asset,) = collection.assets.values()
    assert asset.title == "Polygons of 2 scene(s); what several saw is in it once"
    assert Path(asset.get_absolute_href() or "").name == "polygons.parquet"


def test_every_output_has_an_asset_with_type_roles_and_size(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    run(make_scene(name="town.tif"))
    item = item_in(tmp_path / "out", "town")
    assert set(item.assets) == set(ASSETS) == {*OUTPUTS, "report"}
    for kind, asset in item.assets.items():
        assert asset.media_type == ASSETS[kind].media_type
        assert asset.roles
        if kind != "report":
            assert FileExtension.ext(asset).size == (tmp_path / "out" / "town" / OUTPUTS[kind]).stat().st_size


def test_a_folder_that_moved_is_whole(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    run(make_scene(name="town.tif"))
    moved = tmp_path / "elsewhere" / "results"
    moved.parent.mkdir()
    (tmp_path / "out").rename(moved)
    (item,) = pystac.Collection.from_file(str(moved / "collection.json")).get_items()
    assert item.get_self_href() == str(moved / "town" / "item.json")
    assert Path(item.assets["mask"].get_absolute_href() or "") == moved / "town" / "mask.tif"
    between = [link for link in item.links if link.rel != "derived_from"]
    assert not [link for link in between if str(tmp_path) in link.to_dict().get("href", "") and link.rel != "self"]


def test_an_item_names_its_scene_and_its_model(
    run: Run, make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    scene = make_scene(name="town.tif")
    run(scene)
    item = item_in(tmp_path / "out", "town")
    (source,) = item.get_links("derived_from")
    assert source.href == scene.as_uri()
    assert item.properties["scenemill:model"] == predictor.sha256
    assert item.properties["processing:software"] == {"scenemill": pipeline_version()}
    assert item.properties["processing:level"] == "L4"


def test_an_item_links_to_the_item_that_its_scene_comes_from_and_has_its_date(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    taken = datetime(2026, 5, 1, 10, 30, tzinfo=UTC)
    origin = pystac.Item(id="S2", geometry=None, bbox=None, datetime=taken, properties={})
    scene = make_scene(name="town.tif")
    bands = [{"name": f"B0{k}", "eo:common_name": name} for k, name in enumerate(("red", "green", "blue"))]
    asset = pystac.Asset(str(scene), media_type=pystac.MediaType.COG, extra_fields={"bands": bands})
    origin.add_asset("image", asset)
    origin.save_object(dest_href=str(tmp_path / "source.json"), include_self_link=False)
    for status in ("done", "skipped"):
        entries = [*read_catalog([tmp_path / "source.json"])]
        (report,) = segment_catalog(entries, tmp_path / "out", predictor=predictor, spec=SMALL)
        assert (report.status, report.inputs.source) == (status, str(tmp_path / "source.json"))
        item = item_in(tmp_path / "out", "S2")
        check_core(item.to_dict(include_self_link=False))
        assert item.datetime == taken
        (link,) = item.get_links("derived_from")
        assert pystac.Item.from_file(link.href.removeprefix("file://")).id == "S2"


def pipeline_version() -> str:
    from pipeline import __version__

    return __version__


# Where and when


def test_a_projected_scene_has_its_grid_and_footprint(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(name="town.tif")
    run(scene)
    item = item_in(tmp_path / "out", "town")
    projection = ProjectionExtension.ext(item)
    with rasterio.open(scene) as dataset:
        assert projection.code == "EPSG:32633"
        assert projection.shape == [*dataset.shape]
        assert projection.transform == [*dataset.transform][:6]
        assert projection.bbox == [*dataset.bounds]
    assert item.bbox == pytest.approx([15.0, 48.75283, 15.00034, 48.75301], abs=1e-5)
    assert item.properties["gsd"] == pytest.approx(0.5, rel=1e-3)


def test_a_geographic_scene_across_the_antimeridian_is_cut_there(
    run: Run, make_scene: MakeScene, tmp_path: Path
) -> None:
    run(make_scene(name="isle.tif", crs="EPSG:4326", transform=DEGREES))
    item = item_in(tmp_path / "out", "isle")
    assert ProjectionExtension.ext(item).code == "EPSG:4326"
    assert item.geometry is not None
    assert item.geometry["type"] == "MultiPolygon"
    assert item.bbox == pytest.approx([179.999, -17.004, -179.996, -17.0])
    collection = json.loads((tmp_path / "out" / "collection.json").read_text())
    assert collection["extent"]["spatial"]["bbox"] == [item.bbox]


def test_a_crs_without_a_code_is_written_out(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    run(make_scene(name="town.tif", crs="+proj=laea +lat_0=47 +lon_0=11 +ellps=WGS84 +units=m"))
    projection = ProjectionExtension.ext(item_in(tmp_path / "out", "town"))
    assert projection.code is None
    assert (projection.wkt2 or "").startswith("PROJCRS")


def test_the_date_is_the_scenes_own_where_it_has_one(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(name="town.tif")
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:06:01 10:30:00")
    run(scene)
    item = item_in(tmp_path / "out", "town")
    assert item.properties["datetime"] == "2024-06-01T10:30:00Z"
    assert "datetime is" not in item.properties["description"]


def test_a_scene_without_a_date_takes_that_of_its_file_and_records_it(
    run: Run, make_scene: MakeScene, tmp_path: Path
) -> None:
    scenes = [make_scene(name="a.tif"), make_scene(name="b.tif", seed=1)]
    for day, scene in enumerate(scenes):
        os.utime(scene, (1_700_000_000 + 86_400 * day,) * 2)
    run(*scenes)
    item = item_in(tmp_path / "out", "a")
    assert item.properties["datetime"] == "2023-11-14T22:13:20Z"
    assert "datetime is when its file last changed" in item.properties["description"]
    collection = json.loads((tmp_path / "out" / "collection.json").read_text())
    assert collection["extent"]["temporal"]["interval"] == [["2023-11-14T22:13:20Z", "2023-11-15T22:13:20Z"]]


# Rasters, classes, models


@pytest.mark.parametrize(
    ("dtype", "nodata", "scale"), [("uint8", 255, 1 / 254), ("uint16", 65535, 1 / 65534), ("float32", "nan", 1)]
)
def test_bands_have_the_type_nodata_and_scale_of_the_raster(
    run: Run, make_scene: MakeScene, tmp_path: Path, dtype: Any, nodata: Any, scale: float
) -> None:
    run(make_scene(name="town.tif"), spec=replace(SMALL, mosaic=MosaicSpec(dtype=dtype)))
    item = item_in(tmp_path / "out", "town")
    bands = RasterExtension.ext(item.assets["probability"]).bands or []
    assert [(band.data_type, band.nodata, band.scale, band.offset) for band in bands] == [(dtype, nodata, scale, 0)] * 2
    with rasterio.open(tmp_path / "out" / "town" / "probability.tif") as dataset:
        assert [band["name"] for band in item.assets["probability"].extra_fields["bands"]] == [*dataset.descriptions]
        assert dataset.dtypes[0] == dtype
        assert dataset.scales[0] == pytest.approx(scale)
        assert str(dataset.nodata if dtype == "float32" else int(dataset.nodata)) == str(nodata)


def test_the_mask_lists_its_classes(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    run(make_scene(name="town.tif"))
    mask = item_in(tmp_path / "out", "town").assets["mask"]
    classes = ClassificationExtension.ext(mask).classes or []
    assert [(each.value, each.name) for each in classes] == [(0, "none"), (1, "roof"), (2, "old-road"), (255, "nodata")]
    (band,) = RasterExtension.ext(mask).bands or []
    assert (band.data_type, band.nodata) == ("uint8", 255)


def test_the_collection_names_the_model(
    run: Run, make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    run(make_scene(name="town.tif"))
    model = MLMExtension.ext(pystac.Collection.from_file(str(tmp_path / "out" / "collection.json")))
    assert model.mlm_name == f"scenemill-{predictor.sha256[:12]}"
    assert (model.architecture, model.framework, model.accelerator) == ("unknown", "PyTorch", None)
    assert model.tasks == ["semantic-segmentation"]
    assert [*model.input[0].bands] == ["red", "green", "blue"]
    assert model.input[0].input.shape == [-1, 3, -1, -1]
    assert [(each.value, each.description) for each in model.output[0].classes] == [(1, "roof"), (2, "old road")]


def test_an_architecture_is_known_of_networks_that_were_trained_here() -> None:
    training = {"settings": {"network": {"name": "deeplabv3plus"}}}
    assert architecture_of(ModelCard(bands=("red",), classes=("roof",), training=training)) == "deeplabv3plus"


def test_scaling_is_described_as_on_the_card() -> None:
    card = ModelCard(bands=("red", "nir"), classes=("roof",), normalization=Normalization(gain=(2.0, 0.5), clip=(0, 1)))
    (described,) = model_fields({"a" * 64: card})["mlm:input"]  # type: ignore[attr-defined]
    texts = [each["expression"] for each in described["value_scaling"]]
    assert texts == ["clip(x * 2.0 + 0.0, 0.0, 1.0)", "clip(x * 0.5 + 0.0, 0.0, 1.0)"]


def test_results_of_several_models_share_a_collection(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    other = load_predictor(write_checkpoint(tmp_path / "other.safetensors", seed=1), "cpu", precision="float32")
    run(make_scene(name="town.tif"))
    run(make_scene(name="isle.tif", seed=1), model=other)
    collection = json.loads((tmp_path / "out" / "collection.json").read_text())
    check_core(collection)
    assert len(collection["scenemill:models"]) == 2
    assert other.sha256 in collection["scenemill:models"]
    assert "mlm:name" not in collection
    assert "2 model(s) into the classes old road, roof." in collection["description"]


def test_extensions_are_those_that_pystac_knows(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    known = (ProjectionExtension, RasterExtension, ClassificationExtension, FileExtension)
    run(make_scene(name="town.tif"))
    item = item_in(tmp_path / "out", "town")
    assert {*item.stac_extensions} == {*EXTENSIONS}
    assert {extension.get_schema_uri() for extension in known} < {*EXTENSIONS}


# Runs and reruns


def test_a_rerun_leaves_the_same_bytes_and_a_skipped_scene_in_the_collection(
    run: Run, make_scene: MakeScene, tmp_path: Path
) -> None:
    scenes = [make_scene(name="a.tif"), make_scene(name="b.tif", seed=1)]
    assert [report.status for report in run(*scenes)] == ["done", "done"]
    first = documents(tmp_path / "out")
    assert sorted(first) == ["a/item.json", "b/item.json", "collection.json"]
    assert [report.status for report in run(*scenes)] == ["skipped", "skipped"]
    assert documents(tmp_path / "out") == first
    (tmp_path / "out" / "a" / "item.json").unlink()
    run(*scenes)
    assert documents(tmp_path / "out") == first


def test_another_folder_gets_the_same_bytes(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(name="town.tif")
    run(scene)
    run(scene, out=tmp_path / "again")
    assert documents(tmp_path / "out") == documents(tmp_path / "again")


def test_failed_scenes_are_not_in_the_collection(run: Run, make_scene: MakeScene, tmp_path: Path) -> None:
    reports = run(make_scene(name="a.tif"), write_damaged(tmp_path / "b.tif"))
    assert [report.status for report in reports] == ["done", "failed"]
    assert sorted(documents(tmp_path / "out")) == ["a/item.json", "collection.json"]
    collection = pystac.Collection.from_file(str(tmp_path / "out" / "collection.json"))
    assert [item.id for item in collection.get_items()] == ["a"]


def test_results_of_earlier_runs_stay_in_the_collection_until_they_are_removed(
    run: Run, make_scene: MakeScene, tmp_path: Path
) -> None:
    run(make_scene(name="a.tif"))
    run(make_scene(name="b.tif", seed=1))
    path = tmp_path / "out" / "collection.json"
    assert [item.id for item in pystac.Collection.from_file(str(path)).get_items()] == ["a", "b"]
    shutil.rmtree(tmp_path / "out" / "a")
    write_collection(open_results(tmp_path / "out"))
    assert [item.id for item in pystac.Collection.from_file(str(path)).get_items()] == ["b"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"properties": {"scenemill:key": "0"}}'], ids=["torn", "list", "foreign", "outdated"]
)
def test_an_item_that_does_not_belong_to_its_folder_is_ignored(
    run: Run, make_scene: MakeScene, tmp_path: Path, content: str
) -> None:
    run(make_scene(name="a.tif"), make_scene(name="b.tif", seed=1))
    (tmp_path / "out" / "b" / "item.json").write_text(content)
    write_collection(open_results(tmp_path / "out"))
    collection = pystac.Collection.from_file(str(tmp_path / "out" / "collection.json"))
    assert [item.id for item in collection.get_items()] == ["a"]


def test_where_nothing_was_made_there_is_no_collection(run: Run, tmp_path: Path) -> None:
    run(write_damaged(tmp_path / "b.tif"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json", "quarantine.json"}
