"""Averages over turned tiles and over models: laws to the last bit, and what does not belong together."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import rasterio
import torch
from conftest import MakeScene
from support.models import write_checkpoint
from torch import Tensor

from pipeline.config import SegmentSpec
from pipeline.distribute.spec import DistributeSpec
from pipeline.errors import ModelError, SettingsError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.card import ModelCard, Normalization
from pipeline.model.networks.unet import UNetSpec
from pipeline.model.predictor.compiled import BatchShape
from pipeline.model.predictor.ensemble import (
    SYMMETRIES,
    DihedralTransform,
    EnsemblePredictor,
    TTAPredictor,
    forward_passes,
    running_mean,
    with_tta,
)
from pipeline.model.predictor.ensemble_card import merge_cards
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.model.predictor.protocol import Augment, InferenceSpec, LoadedModel
from pipeline.mosaic.writer import MosaicSpec
from pipeline.polygons.shaping import PolygonSpec
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

AUGMENTS: tuple[Augment, ...] = ("flips", "rotations", "all")
CARD = ModelCard(bands=("red",), classes=("roof",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedPredictor:
    return load_predictor(write_checkpoint(folder / "a.safetensors"), "cpu", precision="float32")


@pytest.fixture(scope="module")
def other(folder: Path) -> LoadedPredictor:
    return load_predictor(write_checkpoint(folder / "b.safetensors", seed=1), "cpu", precision="float32")


def tiles_of(side: int = 64, *, width: int | None = None, seed: int = 0) -> Tensor:
    return torch.randn((2, 3, side, width or side), generator=torch.Generator().manual_seed(seed))


# Symmetries


def test_the_symmetries_of_each_setting_are_a_group() -> None:
    marked = torch.arange(9.0).reshape(1, 1, 3, 3)
    for augment in AUGMENTS:
        laid = {tuple(each.apply(marked).flatten().tolist()) for each in SYMMETRIES[augment]}
        assert len(laid) == len(SYMMETRIES[augment])
        again = {
            tuple(one.apply(two.apply(marked)).flatten().tolist())
            for one in SYMMETRIES[augment]
            for two in SYMMETRIES[augment]
        }
        assert again == laid
    assert {augment: len(each) for augment, each in SYMMETRIES.items()} == {
        "none": 1, "flips": 4, "rotations": 4, "all": 8,
    }  # fmt: skip
    assert set(SYMMETRIES) == set(get_args(Augment))


def test_quarter_turns_are_quarter_turns_and_flips_are_flips() -> None:
    marked = torch.arange(6.0).reshape(1, 1, 2, 3)
    turns = {tuple(torch.rot90(marked, k, (-2, -1)).flatten().tolist()) for k in range(4)}
    assert {tuple(each.apply(marked).flatten().tolist()) for each in SYMMETRIES["rotations"]} == turns
    assert not any(each.transpose for each in SYMMETRIES["flips"])


@pytest.mark.parametrize("symmetry", SYMMETRIES["all"])
def test_undoing_gives_the_tiles_back(symmetry: DihedralTransform) -> None:
    tiles = tiles_of(8, width=12)
    assert torch.equal(symmetry.undo(symmetry.apply(tiles)), tiles)


# Augmented predictors


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_turned_tile_gives_the_turned_result_to_the_last_bit(
    model: LoadedPredictor, augment: Augment, precision: str
) -> None:
    ready = TTAPredictor(model, augment).runnable(BatchShape(precision=precision))
    tiles = tiles_of()
    expected = ready(tiles)
    for symmetry in SYMMETRIES[augment]:
        assert torch.equal(ready(symmetry.apply(tiles)), symmetry.apply(expected)), symmetry
    assert not torch.equal(model.runnable(BatchShape(precision=precision))(tiles), expected)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_result_is_the_mean_over_the_turned_tiles(model: LoadedPredictor, augment: Augment) -> None:
    tiles = tiles_of(32, width=48)
    terms = [each.undo(model(each.apply(tiles))).double() for each in SYMMETRIES[augment]]
    found = TTAPredictor(model, augment)(tiles)
    assert found.shape == (2, 1, 32, 48)
    assert float((found - torch.stack(terms).mean(dim=0)).abs().max()) < 1e-6


@pytest.mark.gpu
def test_turned_tiles_are_averaged_on_cuda(cuda: str, folder: Path, model: LoadedPredictor) -> None:
    there = load_predictor(folder / "a.safetensors", cuda, precision="exact")
    ready = TTAPredictor(there, "all").runnable(BatchShape(precision="exact", shape=(2, 3, 32, 48), deterministic=True))
    tiles = tiles_of(32, width=48)
    assert float((ready(tiles).cpu() - TTAPredictor(model, "all")(tiles)).abs().max()) < 1e-4


class Constant:
    """A model that is the same everywhere, whatever it is shown."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(self, tiles: Tensor) -> Tensor:
        return torch.full((len(tiles), 1, *tiles.shape[2:]), self._value)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-40, 1.0])
def test_a_constant_stays_exactly_that_constant(augment: Augment, value: float) -> None:
    constant: Any = Constant(value)
    constant.card, constant.device, constant.lock = CARD, torch.device("cpu"), None
    found = TTAPredictor(constant, augment)(tiles_of(8))
    assert found.unique().tolist() == [torch.tensor(value).item()]


def test_unpadded_networks_are_turned_within_their_margin(tmp_path: Path) -> None:
    spec = UNetSpec(bands=3, classes=1, depth=2, base_channels=8, padding="valid")
    path = write_checkpoint(tmp_path / "valid.safetensors", network=spec)
    model = load_predictor(path, "cpu", precision="float32")
    tiles = tiles_of(spec.size_offset + 20 * spec.stride)
    found = TTAPredictor(model, "all")(tiles)
    assert found.shape[-1] == tiles.shape[-1] - 2 * model.card.margin
    assert torch.equal(TTAPredictor(model, "all")(tiles.flip(-1)), found.flip(-1))


class Recorder:
    """A model that notes what it is made ready for."""

    def __init__(self) -> None:
        self.card, self.device, self.lock, self.optimized_for = CARD, torch.device("cpu"), None, []  # type: ignore[var-annotated]

    def runnable(self, work: BatchShape) -> Any:
        self.optimized_for.append(work)
        ready: Any = Constant(0.5)
        ready.dtype, ready.layout, ready.device = torch.float32, torch.contiguous_format, self.device
        return ready


@pytest.mark.parametrize(
    ("augment", "shape", "shapes"),
    [
        ("all", (1, 1, 8, 8), [(1, 1, 8, 8)]),
        ("flips", (1, 1, 8, 12), [(1, 1, 8, 12)]),
        ("all", (1, 1, 8, 12), [(1, 1, 8, 12), (1, 1, 12, 8)]),
        ("all", None, [None]),
    ],
    ids=["square", "never turned", "turned", "any shape"],
)
def test_a_model_is_made_ready_for_the_shapes_and_passes_that_follow(
    augment: Augment, shape: Any, shapes: list[Any]
) -> None:
    model: Any = Recorder()
    TTAPredictor(model, augment).runnable(BatchShape(precision="float32", batches=10, shape=shape, deterministic=True))
    passes = len(SYMMETRIES[augment])
    assert model.optimized_for == [
        BatchShape(precision="float32", batches=10 * passes, shape=each, deterministic=True) for each in shapes
    ]


def test_turned_tiles_run_on_the_network_that_was_made_ready_for_them() -> None:
    class ReadyForOneShape(Recorder):
        def runnable(self, work: BatchShape) -> Any:
            def run(tiles: Tensor) -> Tensor:
                assert tuple(tiles.shape) == work.shape
                return tiles

            ready: Any = super().runnable(work)
            run.dtype, run.layout, run.device = ready.dtype, ready.layout, ready.device  # type: ignore[attr-defined]
            return run

    model: Any = ReadyForOneShape()
    tiles = torch.rand(1, 1, 8, 12)
    found = TTAPredictor(model, "all").runnable(BatchShape(precision="float32", shape=(1, 1, 8, 12)))(tiles)
    assert torch.allclose(found, tiles)


def test_identity_members_and_passes_include_the_augmentation(model: LoadedPredictor) -> None:
    found = with_tta(model, "flips")
    assert isinstance(found, LoadedModel)
    assert found.identity == f"{model.identity} augment-flips"
    assert found.members == (found,)
    assert (forward_passes(found), forward_passes(model), forward_passes(lambda tiles: tiles)) == (4, 1, 1)
    assert found.lock is model.lock
    assert with_tta(model, "none") is model


def test_a_plain_function_is_not_augmented() -> None:
    with pytest.raises(SettingsError, match=r"inference\.augment: all needs a loaded checkpoint"):
        with_tta(lambda tiles: tiles, "all")


@pytest.mark.parametrize("augment", AUGMENTS)
def test_an_augmented_predictor_pickles_as_its_model(model: LoadedPredictor, augment: Augment) -> None:
    found = TTAPredictor(model, augment)
    again: Any = pickle.loads(pickle.dumps(found))
    tiles = tiles_of(32)
    assert again.identity == found.identity
    assert torch.equal(again(tiles), found(tiles))


# Ensembles


def test_twice_the_same_model_is_that_model_to_the_last_bit(model: LoadedPredictor) -> None:
    tiles = tiles_of()
    for count in (2, 3, 5):
        assert torch.equal(EnsemblePredictor([model] * count)(tiles), model(tiles))


def test_an_ensemble_is_the_mean_of_its_models(model: LoadedPredictor, other: LoadedPredictor) -> None:
    tiles, both = tiles_of(), EnsemblePredictor([model, other])
    assert torch.equal(both(tiles), running_mean([model(tiles), other(tiles)]))
    assert torch.allclose(both(tiles), (model(tiles) + other(tiles)) / 2)
    assert torch.equal(both.runnable(BatchShape(precision="float32"))(tiles), both(tiles))


@pytest.mark.parametrize("count", range(1, 7))
def test_each_term_of_a_mean_counts_the_same(count: int) -> None:
    terms = [tiles_of(8, seed=seed) for seed in range(count)]
    assert torch.allclose(running_mean(terms), torch.stack(terms).mean(0), atol=1e-6)


def test_the_identity_of_an_ensemble_is_that_of_its_members_in_their_order(
    model: LoadedPredictor, other: LoadedPredictor
) -> None:
    both = EnsemblePredictor([model, other])
    weights, _, rest = both.identity.partition(" ")
    assert weights == f"{model.sha256}+{other.sha256}"
    assert rest == "float32 cpu+float32 cpu"
    assert EnsemblePredictor([other, model]).identity != both.identity
    assert with_tta(both, "all").identity == f"{weights} float32 cpu augment-all+float32 cpu augment-all"


def test_an_ensemble_has_members_one_turn_and_all_their_passes(model: LoadedPredictor, other: LoadedPredictor) -> None:
    both = EnsemblePredictor([model, other])
    assert isinstance(both, LoadedModel)
    assert both.members == (model, other)
    assert both.lock is model.lock
    assert forward_passes(both) == 2
    assert forward_passes(with_tta(both, "all")) == 16


def test_an_ensemble_pickles_as_its_models(model: LoadedPredictor, other: LoadedPredictor) -> None:
    both, tiles = EnsemblePredictor([model, other]), tiles_of(32)
    again: Any = pickle.loads(pickle.dumps(both))
    assert again.identity == both.identity
    assert torch.equal(again(tiles), both(tiles))


def test_members_that_normalise_differently_take_no_common_tiles(folder: Path, model: LoadedPredictor) -> None:
    scaled = Normalization.value_range([0.0] * 3, [255.0] * 3)
    path = write_checkpoint(folder / "scaled.safetensors", normalization=scaled)
    both = EnsemblePredictor([model, load_predictor(path, "cpu", precision="float32")])
    with pytest.raises(ModelError, match="normalise pixels differently"):
        both(tiles_of(32))


# Cards of ensembles


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bands": ("nir",)}, r"agree in bands, but the first has \('red',\) and number 2 has \('nir',\)"),
        ({"classes": ("road",)}, "agree in classes"),
        ({"resolution_m": 0.3}, "agree in resolution_m, but the first has None and number 2 has 0.3"),
        ({"dtype": "uint8"}, "agree in dtype"),
        ({"margin": 4}, "agree in margin"),
        ({"stride": 4, "size_offset": 1}, "no tile size suits all .* 0 modulo 2, 1 modulo 4"),
        ({"tile_size": 33}, "no tile size suits all .* one takes 33 px only"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_models_that_do_not_belong_together_are_refused(change: dict[str, Any], reason: str) -> None:
    card = replace(CARD, stride=2)
    with pytest.raises(ModelError, match=reason):
        merge_cards([card, replace(card, **{"stride": 1, **change})], threshold=None)


def test_the_card_of_an_ensemble_suits_all_models() -> None:
    cards = [
        replace(CARD, stride=4, size_offset=2, receptive_field=31, outputs="logits", temperature=1.5),
        replace(CARD, stride=6, size_offset=0, receptive_field=99),
        replace(CARD, stride=1, tile_size=30),
    ]
    joint = merge_cards(cards, threshold=None)
    assert (joint.stride, joint.size_offset, joint.receptive_field, joint.tile_size) == (12, 6, 99, 30)
    assert (joint.outputs, joint.temperature) == ("probabilities", 1.0)
    assert merge_cards([*cards, replace(CARD, receptive_field=None)], threshold=None).receptive_field is None


def test_thresholds_must_agree_or_be_set() -> None:
    cards = [CARD, replace(CARD, threshold=0.4)]
    assert merge_cards([CARD, CARD], threshold=None).threshold == 0.5
    assert merge_cards(cards, threshold=0.45).threshold == 0.45
    with pytest.raises(SettingsError, match=r"polygons\.threshold must be set .* differ \(0\.5, 0\.4\)"):
        merge_cards(cards, threshold=None)
    exclusive = [replace(card, classes=("a", "b"), activation="softmax") for card in cards]
    assert merge_cards(exclusive, threshold=None).threshold == 0.5


# Whole scenes


SPEC = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8), reading=ReadingSpec(threads=1), polygons=PolygonSpec(threshold=0.5)
)


def rasters(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in ("probability.tif", "mask.tif")}


def pixels_of(folder: str) -> Any:
    with rasterio.open(Path(folder) / "probability.tif") as dataset:
        return dataset.read()


@pytest.mark.parametrize(("regions", "batch_size", "threads"), [(1, 3, 1), (4, 2, 3)])
def test_averages_do_not_depend_on_how_the_work_was_cut(
    make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor, other: LoadedPredictor,
    regions: int, batch_size: int, threads: int,
) -> None:  # fmt: skip
    scene, found = make_scene(height=120, width=75), []
    for out, cut, how in (("whole", 1, {}), ("cut", regions, {"batch_size": batch_size, "threads": threads})):
        inference = InferenceSpec(augment="all", **how)
        spec = replace(SPEC, inference=inference, distribute=DistributeSpec(regions=cut))
        predictor = EnsemblePredictor([model, other])
        found.append(rasters(segment_scene(scene, tmp_path / out, predictor=predictor, spec=spec).folder))
    assert found[0] == found[1]


def test_scenes_too_small_for_a_square_tile_are_averaged_too(
    make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor
) -> None:
    spec = replace(SPEC, inference=InferenceSpec(augment="all"))
    scene = make_scene(np.full((3, 11, 75), 128, np.uint8))
    report = segment_scene(scene, tmp_path / "out", predictor=model, spec=spec)
    assert (report.inputs.passes, report.statistics.tiles_run) == (8, 3)
    assert pixels_of(report.folder).shape == (1, 11, 75)


def test_a_mirrored_scene_gives_the_mirrored_mosaic(
    make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 80, 80), np.uint8)
    spec = replace(SPEC, inference=InferenceSpec(augment="all"))
    mosaics = [
        pixels_of(segment_scene(make_scene(each), tmp_path / "out", predictor=model, spec=spec).folder)
        for each in (pixels, pixels[:, :, ::-1].copy(), pixels.transpose(0, 2, 1).copy())
    ]
    for mosaic, expected in zip(mosaics[1:], (mosaics[0][:, :, ::-1], mosaics[0].transpose(0, 2, 1)), strict=True):
        assert int(np.abs(mosaic.astype(int) - expected.astype(int)).max()) <= 1


def test_exact_blending_equals_one_augmented_pass_over_the_whole_scene(
    make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor
) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 120, 96), np.uint8)
    inference, mosaic = InferenceSpec(augment="all"), MosaicSpec(dtype="float32")
    spec = replace(SPEC, blend="exact", tiling=TilingSpec(tile_size=64), inference=inference, mosaic=mosaic)
    report = segment_scene(make_scene(pixels), tmp_path / "out", predictor=model, spec=spec)
    assert report.statistics.tiles_run > 4
    whole = TTAPredictor(model, "all")(torch.from_numpy((pixels[None].astype(np.float32) - 128) / 64))
    assert float(np.abs(pixels_of(report.folder) - whole[0].numpy()).max()) < 1e-6


def test_an_ensemble_of_one_model_twice_leaves_the_same_rasters(
    make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor
) -> None:
    scene = make_scene(height=60)
    alone = segment_scene(scene, tmp_path / "alone", predictor=model, spec=SPEC)
    twice = segment_scene(scene, tmp_path / "twice", predictor=EnsemblePredictor([model, model]), spec=SPEC)
    assert np.array_equal(pixels_of(alone.folder), pixels_of(twice.folder))
    assert (alone.inputs.passes, twice.inputs.passes) == (1, 2)
    assert twice.inputs.model == f"{model.sha256}+{model.sha256}"


def test_an_ensemble_is_within_a_level_of_the_mean_of_separate_runs(
    make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor, folder: Path
) -> None:
    scaled = write_checkpoint(
        folder / "other-scale.safetensors", seed=2, normalization=Normalization.standard([100.0] * 3, [30.0] * 3)
    )
    models = [model, load_predictor(scaled, "cpu", precision="float32")]
    scene = make_scene(height=60)
    runs = [
        pixels_of(segment_scene(scene, tmp_path / str(k), predictor=each, spec=SPEC).folder).astype(float)
        for k, each in enumerate([*models, EnsemblePredictor(models)])
    ]
    assert np.abs(runs[0] - runs[1]).max() > 50
    assert np.abs(runs[2] - (runs[0] + runs[1]) / 2).max() <= 1


def test_another_augmentation_is_another_result(make_scene: MakeScene, tmp_path: Path, model: LoadedPredictor) -> None:
    scene = make_scene()
    reports = [
        segment_scene(
            scene, tmp_path, predictor=model, spec=replace(SPEC, inference=InferenceSpec(augment=augment))
        )
        for augment in ("none", "flips", "flips")
    ]  # fmt: skip
    assert [report.status for report in reports] == ["done", "done", "skipped"]
    assert [report.inputs.passes for report in reports] == [1, 4, 4]
