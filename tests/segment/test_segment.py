"""One scene from raster to polygons: what is published, what is refused, and what a rerun finds."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from conftest import MakeScene
from numpy.typing import NDArray
from rasterio.features import rasterize
from rio_cogeo import cog_validate
from support.golden import contents
from support.models import ROOF, brightness, write_checkpoint

import pipeline
from pipeline import segment
from pipeline.config import SegmentSpec
from pipeline.distribute.executor import LocalExecutor
from pipeline.errors import ModelError, SettingsError, TransientError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.card import ModelCard
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.mosaic.writer import MosaicSpec
from pipeline.polygons.shaping import PolygonSpec
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene, vectorize_mosaic

OUTPUTS = {"probability.tif", "mask.tif", "polygons.gpkg", "preview.png", "report.json"}
SMALL = SegmentSpec(tiling=TilingSpec(tile_size=32, overlap=8), reading=ReadingSpec(threads=1))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoadedPredictor:
    path = write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")
    return load_predictor(path, "cpu", precision="float32")


@pytest.fixture
def red_scene(make_scene: MakeScene) -> Callable[..., Path]:
    """Scenes of one band, called red."""
    return lambda *args, **kwargs: make_scene(*args, **{"bands": 1, "descriptions": ["red"], **kwargs})


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read()


def polygons_of(folder: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_file(folder / "polygons.gpkg", layer="polygons")


# What a predictor may be


def test_a_plain_function_and_its_card_make_every_output(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    scene = red_scene(name="town.tif")
    report = pipeline.segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, spec=SMALL)
    assert {path.name for path in (tmp_path / "out" / "town").iterdir()} == OUTPUTS
    assert (report.status, report.inputs.model, report.scene) == ("done", "function", "town")
    stored = read(tmp_path / "out" / "town" / "probability.tif")
    assert (stored == np.floor(read(scene) / np.float32(255) * 254 + 0.5)).all()


@pytest.mark.parametrize(
    "predictor",
    [
        lambda tiles: torch.sigmoid(tiles - 128),
        lambda tiles: tiles.sub(128).sigmoid(),
        lambda tiles: torch.from_numpy(tiles).sub(128).sigmoid(),
        torch.nn.Sequential(torch.nn.BatchNorm2d(1, affine=False), torch.nn.Hardsigmoid()),
    ],
    ids=["torch function", "tensor method", "numpy to torch", "module in training mode"],
)
def test_functions_on_tensors_and_modules_are_predictors_too(
    red_scene: Callable[..., Path], tmp_path: Path, predictor: Any
) -> None:
    report = segment_scene(red_scene(), tmp_path, predictor=predictor, card=ROOF, spec=SMALL)
    assert report.status == "done"
    assert report.polygons > 0


def test_an_error_inside_a_plain_function_is_not_hidden(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    def faulty(tiles: NDArray[Any]) -> NDArray[Any]:
        raise TypeError("my own mistake")

    with pytest.raises(TypeError, match="my own mistake"):
        segment_scene(red_scene(), tmp_path, predictor=faulty, card=ROOF, spec=SMALL)


def test_a_plain_function_needs_a_card(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs a card"):
        segment_scene(red_scene(), tmp_path, predictor=brightness, spec=SMALL)


def test_a_loaded_predictor_refuses_another_card(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    with pytest.raises(ModelError, match="brings its own card"):
        segment_scene(make_scene(), tmp_path, predictor=predictor, card=ROOF, spec=SMALL)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (lambda tiles: tiles[:, :, 1:], "promises"),
        (lambda tiles: np.concatenate([tiles, tiles], axis=1) / 255, "promises"),
        (lambda tiles: tiles[0] / 255, "promises"),
        (lambda tiles: np.full_like(tiles, np.nan), "NaN"),
        (lambda tiles: tiles - 128, "outputs='logits'"),
        (lambda tiles: tiles / 255 + 0.5, "probabilities in 0..1"),
        (lambda tiles: None, "NoneType"),
    ],
    ids=["one row short", "a class too many", "no batch", "NaN", "logits", "over 1", "nothing"],
)
def test_impossible_outputs_are_refused_and_nothing_is_published(
    red_scene: Callable[..., Path], tmp_path: Path, returned: Any, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        segment_scene(red_scene(), tmp_path / "out", predictor=returned, card=ROOF, spec=SMALL)
    assert [*(tmp_path / "out").iterdir()] == []


# Classes


def test_exclusive_classes_with_a_background_leave_it_without_polygons(
    red_scene: Callable[..., Path], tmp_path: Path
) -> None:
    values = np.repeat(np.uint8([0, 100, 200]), 20)[None].repeat(30, axis=0)

    def model(tiles: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([-abs(tiles - centre) / 20 for centre in (0, 100, 200)], axis=1)

    card = ModelCard(
        bands=("red",),
        classes=("ground", "water", "crop"),
        activation="softmax",
        outputs="logits",
        background="ground",
    )
    report = segment_scene(red_scene(values), tmp_path, predictor=model, card=card, spec=SMALL)
    folder = Path(report.folder)
    assert (read(folder / "mask.tif")[0] == values // 100).all()
    assert polygons_of(folder)["class"].to_list() == ["water", "crop"]
    assert report.area_m2 == pytest.approx({"water": 150, "crop": 150}, rel=2e-3)
    sums = read(folder / "probability.tif").astype(int).sum(axis=0)
    assert (abs(sums - 254) <= 2).all()


def test_independent_classes_have_a_band_each_and_may_overlap(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    values = np.repeat(np.uint8([0, 100, 200]), 20)[None].repeat(30, axis=0)

    def model(tiles: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([tiles >= 100, tiles >= 200], axis=1).astype(np.float32)

    card = ModelCard(bands=("red",), classes=("tree", "crown"))
    report = segment_scene(red_scene(values), tmp_path, predictor=model, card=card, spec=SMALL)
    with rasterio.open(Path(report.folder) / "probability.tif") as dataset:
        assert dataset.descriptions == ("tree", "crown")
        assert (dataset.read() == 254 * np.array([values >= 100, values >= 200])).all()
    assert report.area_m2 == pytest.approx({"tree": 300, "crown": 150}, rel=2e-3)


def test_a_threshold_for_exclusive_classes_is_refused_before_any_work(
    red_scene: Callable[..., Path], tmp_path: Path
) -> None:
    card = ModelCard(bands=("red",), classes=("a", "b"), activation="softmax")
    spec = SegmentSpec(polygons=PolygonSpec(threshold=0.7))
    with pytest.raises(SettingsError, match="threshold"):
        segment_scene(red_scene(), tmp_path / "out", predictor=lambda tiles: 1 / 0, card=card, spec=spec)
    assert not (tmp_path / "out").exists()


# Rasters


@pytest.mark.parametrize(("dtype", "top", "nodata"), [("uint8", 254, 255), ("uint16", 65534, 65535)])
def test_integer_mosaics_read_as_probabilities_in_any_gis(
    red_scene: Callable[..., Path], tmp_path: Path, dtype: Any, top: int, nodata: int
) -> None:
    scene = red_scene(nodata=0, seed=3)
    spec = SegmentSpec(tiling=SMALL.tiling, mosaic=MosaicSpec(dtype=dtype))
    report = segment_scene(scene, tmp_path, predictor=brightness, card=ROOF, spec=spec)
    with rasterio.open(Path(report.folder) / "probability.tif") as dataset:
        assert (dataset.dtypes[0], dataset.nodata) == (dtype, nodata)
        assert (dataset.scales, dataset.offsets) == ((pytest.approx(1 / top),), (0.0,))
        assert (dataset.descriptions, dataset.units) == (("roof",), (None,))
        shown = dataset.read(1) * dataset.scales[0]
    assert np.abs(shown - read(scene)[0] / 255).max() <= 0.51 / top


def test_float_mosaics_hold_the_model_outputs(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (1, 40, 50), np.uint8)
    pixels[0, :5] = 0
    spec = SegmentSpec(tiling=SMALL.tiling, mosaic=MosaicSpec(dtype="float32"))
    report = segment_scene(red_scene(pixels, nodata=0), tmp_path, predictor=brightness, card=ROOF, spec=spec)
    expected = np.where(pixels == 0, np.nan, pixels / np.float32(255))
    assert np.array_equal(read(Path(report.folder) / "probability.tif"), expected, equal_nan=True)


@pytest.mark.parametrize(("dtype", "compress"), [("uint8", "zstd"), ("uint16", "deflate"), ("float32", "zstd")])
def test_mosaic_and_mask_are_strictly_valid_cogs_with_overviews(
    red_scene: Callable[..., Path], tmp_path: Path, dtype: Any, compress: Any
) -> None:
    scene = red_scene(height=520, width=1030, tiled=256)
    spec = SegmentSpec(tiling=TilingSpec(tile_size=512), mosaic=MosaicSpec(dtype=dtype, compress=compress))
    report = segment_scene(scene, tmp_path, predictor=brightness, card=ROOF, spec=spec)
    for name in ("probability.tif", "mask.tif"):
        path = str(Path(report.folder) / name)
        assert cog_validate(path, strict=True) == (True, [], [])
        with rasterio.open(path) as dataset:
            assert dataset.block_shapes == [(512, 512)]
            assert dataset.compression.name == compress
            assert dataset.overviews(1) == [2, 4]


def test_rasters_record_their_provenance(make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor) -> None:
    report = segment_scene(make_scene(name="town.tif"), tmp_path, predictor=predictor, spec=SMALL)
    for name in ("probability.tif", "mask.tif"):
        with rasterio.open(Path(report.folder) / name) as dataset:
            tags = dataset.tags()
        assert tags["SCENEMILL_SCENE"] == "town"
        assert tags["SCENEMILL_MODEL"] == predictor.sha256
        assert tags["SCENEMILL_VERSION"] == pipeline.__version__


def test_the_mask_shows_its_classes_in_colour_and_nodata_not_at_all(
    red_scene: Callable[..., Path], tmp_path: Path
) -> None:
    report = segment_scene(red_scene(), tmp_path, predictor=brightness, card=ROOF, spec=SMALL)
    with rasterio.open(Path(report.folder) / "mask.tif") as dataset:
        colours = dataset.colormap(1)
        assert (dataset.nodata, dataset.tags()["CLASS_1"]) == (255, "roof")
    assert colours[255][3] == 0
    assert max(colours[1][:3]) > 200


# Where scenes lie


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000),
        Affine(-0.5, 0, 500_000, 0, -0.5, 5_400_000),
        Affine.translation(500_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5),
        Affine(0.5, 0.2, 500_000, 0.1, -0.4, 5_400_000),
    ],
    ids=["south-up", "mirrored", "rotated", "sheared"],
)
def test_polygons_of_scenes_that_do_not_point_north_burn_back_onto_the_mask(
    red_scene: Callable[..., Path], tmp_path: Path, transform: Affine
) -> None:
    scene = red_scene(transform=transform)
    report = segment_scene(scene, tmp_path, predictor=brightness, card=ROOF, spec=SMALL)
    with rasterio.open(Path(report.folder) / "mask.tif") as dataset:
        assert dataset.transform.almost_equals(transform)
        mask = dataset.read(1)
    frame = polygons_of(Path(report.folder))
    burnt = rasterize(frame.geometry, out_shape=mask.shape, transform=transform)
    assert (burnt == (mask == 1)).all()
    assert shapely.is_valid(frame.geometry).all()
    shells = shapely.get_exterior_ring(shapely.get_parts(frame.geometry.to_numpy()))
    assert shapely.is_ccw(shells).all()
    assert frame["area_m2"].sum() == pytest.approx((mask == 1).sum() * abs(transform.determinant), rel=2e-3)


# Sizes


def test_a_scene_of_one_pixel_becomes_one_polygon(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    report = segment_scene(red_scene(np.uint8([[200]])), tmp_path, predictor=brightness, card=ROOF)
    assert (report.statistics.pixels, report.statistics.tiles_run, report.polygons) == (1, 1, 1)
    assert report.area_m2["roof"] == pytest.approx(0.25, rel=2e-3)
    assert read(Path(report.folder) / "mask.tif").tolist() == [[[1]]]


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (31, 33), (64, 64), (65, 64)])
def test_any_size_suits_a_network_with_a_stride(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor, shape: tuple[int, int]
) -> None:
    scene = make_scene(height=shape[0], width=shape[1])
    spec = SegmentSpec(tiling=TilingSpec(tile_size=64))
    report = segment_scene(scene, tmp_path, predictor=predictor, spec=spec)
    assert report.statistics.valid_pixels == shape[0] * shape[1]
    assert read(Path(report.folder) / "probability.tif").shape == (1, *shape)


def test_a_scene_without_valid_pixels_gives_an_empty_layer(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    scene = red_scene(np.zeros((40, 50), np.uint8), nodata=0)
    report = segment_scene(scene, tmp_path, predictor=lambda tiles: 1 / 0, card=ROOF, spec=SMALL)
    assert (report.status, report.polygons, report.area_m2) == ("done", 0, {"roof": 0})
    assert (report.statistics.tiles_run, report.statistics.tiles_skipped, report.statistics.valid_pixels) == (0, 4, 0)
    folder = Path(report.folder)
    assert (read(folder / "probability.tif") == 255).all()
    assert (read(folder / "mask.tif") == 255).all()
    frame = polygons_of(folder)
    assert len(frame) == 0
    assert {"class", "area_m2", "mean_probability"} <= set(frame.columns)
    with sqlite3.connect(folder / "polygons.gpkg") as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    connection.close()


# Reports and progress


def test_the_report_records_inputs_and_outputs(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    scene = make_scene(name="town.tif", nodata=0, seed=4)
    report = segment_scene(scene, tmp_path, predictor=predictor, spec=SMALL)
    stored = json.loads((tmp_path / "town" / "report.json").read_text())
    assert stored["status"] == "done"
    assert stored["location"] == str(scene)
    assert stored["model"] == predictor.sha256
    assert stored["version"] == pipeline.__version__
    assert stored["settings"]["tiling"] == {"tile_size": 32, "overlap": 8}
    assert stored["pixels"] == 2000
    assert stored["valid_pixels"] == int((read(tmp_path / "town" / "mask.tif") != 255).sum())
    assert stored["polygons"] == len(polygons_of(tmp_path / "town")) == report.polygons
    assert stored["area_m2"]["roof"] == pytest.approx(polygons_of(tmp_path / "town")["area_m2"].sum())
    assert {*stored["seconds"]} == {"infer", "mosaic", "polygons", "preview"}
    assert set(stored["outputs"].values()) == OUTPUTS - {"report.json"}


def test_progress_climbs_to_every_pixel_of_the_scene(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    updates: list[tuple[str, int, int]] = []
    scene = red_scene(height=200)
    segment_scene(
        scene, tmp_path, predictor=brightness, card=ROOF, spec=SMALL, watch=lambda *step: updates.append(step)
    )
    counts = [done for stage, done, _ in updates if stage == "infer"]
    assert counts == sorted(set(counts))
    assert (counts[-1], {total for *_, total in updates}) == (10_000, {10_000})


def test_what_polygons_need_is_loaded_while_regions_run_and_not_while_the_precision_is_proven(
    red_scene: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for owner, name in ((LocalExecutor, "check_precision"), (segment, "_load_polygon_kernels")):
        function = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *given, n=name, f=function, **more: called.append(n) or f(*given, **more)
        )
    segment_scene(red_scene(), tmp_path, predictor=brightness, card=ROOF, spec=SMALL)
    assert called == ["check_precision", "_load_polygon_kernels"]


def test_polygons_can_be_made_again_from_the_mosaic(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    report = segment_scene(make_scene(), tmp_path, predictor=predictor, spec=SMALL)
    folder = Path(report.folder)
    again = vectorize_mosaic(folder / "probability.tif", tmp_path / "again.gpkg")
    assert (tmp_path / "again.gpkg").read_bytes() == (folder / "polygons.gpkg").read_bytes()
    larger = vectorize_mosaic(
        folder / "probability.tif", tmp_path / "larger.gpkg", spec=PolygonSpec(min_area_m2=1, threshold=0.4)
    )
    assert again.count == report.polygons
    assert 0 < larger.count < again.count


# Running again


def test_a_finished_scene_is_skipped(make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor) -> None:
    scene = make_scene()
    first = segment_scene(scene, tmp_path, predictor=predictor, spec=SMALL)
    times = {path: path.stat().st_mtime_ns for path in Path(first.folder).iterdir()}
    again = segment_scene(scene, tmp_path, predictor=predictor, spec=SMALL)
    assert (first.status, again.status) == ("done", "skipped")
    assert again.polygons == first.polygons
    assert times == {path: path.stat().st_mtime_ns for path in Path(first.folder).iterdir()}


def test_settings_that_do_not_change_the_result_do_not_undo_it(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    from dataclasses import replace

    from pipeline.distribute.spec import DistributeSpec

    scene = make_scene()
    segment_scene(scene, tmp_path, predictor=predictor, spec=SMALL)
    other = replace(SMALL, distribute=DistributeSpec(regions=2), reading=ReadingSpec(threads=3))
    assert segment_scene(scene, tmp_path, predictor=predictor, spec=other).status == "skipped"


@pytest.mark.parametrize("change", ["setting", "model", "scene", "output lost", "report lost"])
def test_a_scene_is_done_again_when_anything_that_matters_changed(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor, change: str
) -> None:
    scene, spec = make_scene(name="town.tif"), SMALL
    folder = Path(segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec).folder)
    if change == "setting":
        spec = SegmentSpec(tiling=SMALL.tiling, polygons=PolygonSpec(min_area_m2=2))
    elif change == "model":
        model = write_checkpoint(tmp_path / "other.safetensors", seed=1)
        predictor = load_predictor(model, "cpu", precision="float32")
    elif change == "scene":
        make_scene(name="town.tif", seed=1)
        os.utime(scene, ns=(0, 0))
    else:
        (folder / ("mask.tif" if change == "output lost" else "report.json")).unlink()
    report = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec)
    assert report.status == "done"
    assert {path.name for path in folder.iterdir()} == OUTPUTS


def test_a_function_has_no_identity_so_its_scenes_are_always_done_again(
    red_scene: Callable[..., Path], tmp_path: Path
) -> None:
    scene = red_scene()
    for _ in range(2):
        report = segment_scene(scene, tmp_path, predictor=brightness, card=ROOF, spec=SMALL)
        assert (report.status, report.inputs.content_key) == ("done", None)


def test_a_skipped_scene_is_reported_where_it_lies_now(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    scene = make_scene(name="town.tif")
    segment_scene(scene, tmp_path / "before", predictor=predictor, spec=SMALL)
    (tmp_path / "before").rename(tmp_path / "after")
    report = segment_scene(scene, tmp_path / "after", predictor=predictor, spec=SMALL)
    assert (report.status, report.folder) == ("skipped", str(tmp_path / "after" / "town"))


def test_files_of_others_in_the_scene_folder_survive_a_rerun(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    scene = red_scene()
    folder = Path(segment_scene(scene, tmp_path, predictor=brightness, card=ROOF, spec=SMALL).folder)
    (folder / "notes.txt").write_text("mine")
    segment_scene(scene, tmp_path, predictor=brightness, card=ROOF, spec=SMALL)
    assert {path.name for path in folder.iterdir()} == {*OUTPUTS, "notes.txt"}
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failing_rerun_leaves_the_previous_result_complete(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    scene = red_scene()
    folder = Path(segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, spec=SMALL).folder)
    before = contents(folder)
    with pytest.raises(ModelError):
        segment_scene(scene, tmp_path / "out", predictor=lambda tiles: tiles - 300, card=ROOF, spec=SMALL)
    assert contents(folder) == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]


def test_an_output_folder_that_is_a_file_is_named(red_scene: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(TransientError, match=r"out.*cannot be written"):
        segment_scene(red_scene(), tmp_path / "out", predictor=brightness, card=ROOF, spec=SMALL)


def test_two_scenes_at_once_share_a_predictor_without_mixing(
    make_scene: MakeScene, tmp_path: Path, predictor: LoadedPredictor
) -> None:
    scenes = [make_scene(height=90, width=70, seed=seed) for seed in range(4)]

    def run(scene: Path, out: str) -> Path:
        return Path(segment_scene(scene, tmp_path / out, predictor=predictor, spec=SMALL).folder)

    with ThreadPoolExecutor(2) as pool:
        together = [*pool.map(lambda scene: run(scene, "together"), scenes)]
    for scene, folder in zip(scenes, together, strict=True):
        assert contents(folder) == contents(run(scene, "alone"))


def test_a_relative_output_folder_counts_from_the_current_one(
    red_scene: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = red_scene(name="town.tif")
    monkeypatch.chdir(tmp_path)
    report = segment_scene(scene, "out", predictor=brightness, card=ROOF, spec=SMALL)
    assert (report.status, report.folder) == ("done", "out/town")
    assert {path.name for path in (tmp_path / "out" / "town").iterdir()} == OUTPUTS
