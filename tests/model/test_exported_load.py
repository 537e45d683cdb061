"""Networks from elsewhere: exported, joined with a card, run like our own; and nothing in a file of theirs runs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.cli.inspect import inspect_path
from pipeline.config import SegmentSpec
from pipeline.errors import ModelError, SettingsError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.card import ModelCard, Normalization
from pipeline.model.exported.archive import CARD, GRAPH, SAMPLE, Archive
from pipeline.model.exported.graph import read_graph
from pipeline.model.exported.load import describe_exported, import_model, load_exported, read_card
from pipeline.model.exported.module import ExportedNetwork, read_tensors
from pipeline.model.exported.operators import OPERATORS, base_name
from pipeline.model.predictor import precision as formats
from pipeline.model.predictor.compiled import BatchShape
from pipeline.model.predictor.loading import load_predictor
from pipeline.mosaic.writer import MosaicSpec
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

Content = dict[str, Any]


class Block(nn.Module):
    """A ConvNeXt block (Liu et al. 2022): wide depthwise convolution, layer norm over channels, two linear layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.narrow(nn.functional.gelu(self.wide(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class Foreign(nn.Module):
    """A network that this project does not know: its tiles are multiples of 4, and it looks at the whole tile."""

    def __init__(self, classes: int = 2, *, whole: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.whole = whole
        self.stem, self.block = nn.Conv2d(3, 8, 4, stride=4), Block(8)
        self.mix, self.norm, self.drop = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head = nn.Conv2d(8, classes, 1)
        self.register_buffer("shift", torch.linspace(-1, 1, classes)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        y = self.drop(nn.functional.relu_(self.norm(self.mix(self.block(self.stem(x))))))
        if self.whole:
            with torch.no_grad():
                y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        y = nn.functional.interpolate(3 * self.head(y), size=size, mode="bilinear", align_corners=False)
        return y + self.shift + torch.tensor(0.25)


class Flat(nn.Module):
    """Reads its features in the order of memory, as exports do that call `view`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid((2 * x).view(x.shape[0], -1).reshape(x.shape)[:, :1])


DIMS = ({0: torch.export.Dim("n"), 2: 4 * torch.export.Dim("h"), 3: 4 * torch.export.Dim("w")},)
ANY = ({0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")},)
CARD_KEYS = {
    "bands": ["red", "green", "blue"],
    "classes": ["roof", "road"],
    "outputs": "logits",
    "stride": 4,
    "normalization": {"gain": [0.01, 0.01, 0.01], "bias": [-1.0, -1.0, -1.0]},
}


def export(
    module: nn.Module, path: Path, *, shape: tuple[int, ...] = (2, 3, 64, 64), dims: Any = None, training: bool = False
) -> Path:
    program = torch.export.export(module.train(training), (torch.randn(shape),), dynamic_shapes=dims)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("external")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """`Foreign` with free batch, height and width."""
    return export(Foreign(), folder / "exported.pt2", dims=DIMS)


@pytest.fixture(scope="module")
def fixed(folder: Path) -> Path:
    """`Foreign` with batches of 2 and tiles of 64 px."""
    return export(Foreign(), folder / "fixed.pt2")


@pytest.fixture(scope="module")
def model(folder: Path, exported: Path) -> Path:
    import_model(exported, card_file(folder), folder / "model.pt2")
    return folder / "model.pt2"


def card_file(folder: Path, **changes: Any) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps(CARD_KEYS | changes))
    return path


def rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], **options: Any) -> Path:
    """A copy of an archive whose members (named without the folder they lie in) `change` has edited."""
    with zipfile.ZipFile(source) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return target


def edit_graph(change: Callable[[Content], None]) -> Callable[[dict[str, bytes]], None]:
    """What edits the graph's JSON of an archive."""

    def edit(members: dict[str, bytes]) -> None:
        content = json.loads(members[GRAPH])
        change(content["graph_module"]["graph"])
        members[GRAPH] = json.dumps(content).encode()

    return edit


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


def probabilities(folder: str) -> np.ndarray:
    with rasterio.open(Path(folder) / "probability.tif") as dataset:
        return np.asarray(dataset.read())


# A network that our code does not know


@pytest.mark.parametrize("sizes", ["free", "fixed"])
@pytest.mark.parametrize("shape", [(150, 131), (40, 30)])  # larger and smaller than a tile
def test_it_gives_the_mosaic_of_the_same_network_as_a_module(
    make_scene: MakeScene, tmp_path: Path, exported: Path, fixed: Path, sizes: str, shape: tuple[int, int]
) -> None:
    network, source = Foreign().eval(), exported if sizes == "free" else fixed
    card = import_model(source, card_file(tmp_path), tmp_path / "model.pt2").card
    assert card.tile_size == (None if sizes == "free" else 64)
    scene = make_scene(height=shape[0], width=shape[1], descriptions=CARD_KEYS["bands"])
    spec = SegmentSpec(tiling=TilingSpec(tile_size=64), mosaic=MosaicSpec(dtype="float32"))
    loaded = load_predictor(tmp_path / "model.pt2", "cpu")
    found = segment_scene(scene, tmp_path / "a", predictor=loaded, spec=spec)
    expected = segment_scene(scene, tmp_path / "b", predictor=network, card=card, spec=spec)
    assert found.statistics.tiles_run == expected.statistics.tiles_run
    assert found.inputs.model == loaded.sha256
    result = probabilities(found.folder)
    assert result.std() > 0.05
    assert np.abs(result - probabilities(expected.folder)).max() < 1e-5


def test_a_pickle_round_trip_loads_the_file_once_per_process(model: Path) -> None:
    predictor = load_predictor(model, "cpu")
    message = pickle.dumps(predictor)
    assert len(message) < 1000
    first, second = pickle.loads(message), pickle.loads(message)
    assert first is second
    assert (first.identity, first.card) == (predictor.identity, predictor.card)
    tiles = torch.randn((1, 3, 32, 32))
    assert torch.equal(first(tiles), predictor(tiles))


def test_an_imported_file_is_one_that_torch_loads_with_the_same_result(model: Path) -> None:
    tiles = torch.randn((2, 3, 64, 32))
    theirs = torch.export.load(model).module()(tiles)
    assert torch.equal(load_exported(model).network(tiles), theirs)


# torch 2.13 warns of its own use of a class that it replaces.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
def test_a_decomposed_export_computes_the_same(model: Path, tmp_path: Path) -> None:
    program = torch.export.export(Foreign().eval(), (torch.randn((2, 3, 64, 64)),)).run_decompositions()
    torch.export.save(program, tmp_path / "core.pt2")
    import_model(tmp_path / "core.pt2", card_file(tmp_path), tmp_path / "model.pt2")
    tiles = torch.randn((2, 3, 64, 64))
    ours = load_exported(tmp_path / "model.pt2").network(tiles)
    assert (ours - load_exported(model).network(tiles)).abs().max() < 1e-5


def test_equal_content_gives_equal_files_and_another_card_another_identity(
    model: Path, exported: Path, tmp_path: Path
) -> None:
    again = import_model(exported, card_file(tmp_path), tmp_path / "again.pt2")
    assert (tmp_path / "again.pt2").read_bytes() == model.read_bytes()
    other = import_model(exported, card_file(tmp_path, threshold=0.4), tmp_path / "other.pt2")
    assert again.sha256 != other.sha256


def test_a_file_may_be_imported_again_with_another_card(model: Path, tmp_path: Path) -> None:
    facts = import_model(model, card_file(tmp_path, temperature=2.0), tmp_path / "warm.pt2")
    assert facts.card.temperature == 2
    tiles = torch.randn((1, 3, 32, 32))
    warm, plain = (load_predictor(path, "cpu")(tiles) for path in (tmp_path / "warm.pt2", model))
    assert (warm.logit() - plain.logit() / 2).abs().max() < 1e-5


def test_a_fixed_batch_is_split_and_padded(fixed: Path, tmp_path: Path) -> None:
    network = Foreign().eval()
    import_model(fixed, card_file(tmp_path), tmp_path / "model.pt2")
    loaded = load_exported(tmp_path / "model.pt2").network
    tiles = torch.randn((5, 3, 64, 64))
    assert loaded.batch == 2
    assert (loaded(tiles) - network(tiles)).abs().max() < 1e-5
    with pytest.raises(ModelError, match=r"takes height 64, not 32; set tiling\.tile_size"):
        loaded(tiles[:, :, :32])


def test_probabilities_do_not_depend_on_the_number_of_threads(model: Path) -> None:
    predictor, tiles, usual = load_predictor(model, "cpu"), torch.randn(2, 3, 64, 64), torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(predictor(tiles))
    torch.set_num_threads(usual)
    assert torch.equal(*results)


def test_it_runs_in_float32_unless_another_format_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "fastest_precision", lambda device: "bfloat16")
    exact, lower = load_predictor(model, "cpu"), load_predictor(model, "cpu", precision="bfloat16")
    tiles = torch.randn((1, 3, 64, 64))
    assert [each.check_precision(tiles).precision for each in (exact, lower)] == ["float32", "bfloat16"]
    assert exact.identity != lower.identity
    assert 0 < (exact(tiles) - lower(tiles)).abs().max() < 0.1


class Normed(nn.Module):
    """Every kind of batch norm behind a convolution; the last two cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.first_norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4, affine=False)
        self.third, self.third_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head, self.head_norm = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
        for norm in (self.first_norm, self.second_norm, self.third_norm, self.head_norm):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.first_norm(self.first(x)))
        x = self.second_norm(self.second(x))
        twice = self.third(x)
        x = self.third_norm(twice) + twice
        return self.head_norm(torch.relu(self.head(x)))


def test_batch_norm_is_folded_where_it_alone_reads_a_convolution(tmp_path: Path) -> None:
    path = export(Normed(), tmp_path / "e.pt2", dims=ANY)
    archive, tiles = Archive(path), torch.randn((2, 3, 20, 24))
    network = ExportedNetwork(read_graph(archive.read_json(GRAPH)), read_tensors(archive))
    with torch.inference_mode():
        expected = network(tiles)
        weights = len([*network.buffers()])
        network.fold_batch_norm()
        assert float((network(tiles) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    called = [call.step.target.split(".")[3] for call in network._program._calls]
    assert (called.count("conv2d"), called.count("batch_norm")) == (4, 2)
    assert len([*network.buffers()]) == weights - 5 - 4, "five were folded, and nobody reads the four counts of batches"


def test_a_format_that_the_network_does_not_run_in_is_refused(tmp_path: Path) -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.head(x.to(torch.float32)))

    card = card_file(tmp_path, outputs="probabilities", stride=1)
    import_model(export(Insists(), tmp_path / "e.pt2", dims=ANY), card, tmp_path / "model.pt2")
    load_predictor(tmp_path / "model.pt2", "cpu")
    with pytest.raises(
        SettingsError, match=r"inference\.precision: bfloat16 does not suit this network .*; use float32"
    ):
        load_predictor(tmp_path / "model.pt2", "cpu", precision="bfloat16")


def test_a_network_that_reads_memory_in_order_keeps_its_layout(tmp_path: Path, model: Path) -> None:
    card = card_file(tmp_path, classes=["roof"], outputs="probabilities", stride=1)
    import_model(export(Flat(), tmp_path / "e.pt2", dims=ANY), card, tmp_path / "model.pt2")
    tiles = torch.randn((3, 3, 20, 24))
    assert torch.equal(load_predictor(tmp_path / "model.pt2", "cpu")(tiles), torch.sigmoid(2 * tiles[:, :1]))
    assert load_predictor(model, "cpu").runnable(BatchShape(precision="float32")).layout == torch.channels_last


# What a file says about itself


def test_facts_come_without_torch_and_without_the_weights(model: Path) -> None:
    facts = describe_exported(model)
    assert facts.card == load_exported(model).card
    assert facts.sha256 == load_exported(model).sha256
    assert facts.parameters == sum(each.numel() for each in Foreign().state_dict().values())
    assert facts.sizes == "batch any, height 0 modulo 4 from 8, width 0 modulo 4 from 8"
    program = (
        "import sys; from pipeline.model.exported.load import describe_exported; "
        f"describe_exported({str(model)!r}); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]


def test_inspection_shows_the_kind_and_whether_a_scene_fits(model: Path, make_scene: MakeScene) -> None:
    kind, facts = inspect_path(str(model), ReadingSpec())
    shown = dict(facts)
    assert (kind, shown["sha256"]) == ("checkpoint", describe_exported(model).sha256)
    assert shown["architecture"].endswith(f"operators, exported by torch {torch.__version__}")
    assert shown["receptive field"] == "unbounded"
    scene = make_scene(descriptions=CARD_KEYS["bands"])
    assert inspect_path(str(scene), ReadingSpec(), model=model)[1][-1] == ("fits model", "yes")


def test_sample_inputs_and_source_lines_do_not_travel(model: Path, exported: Path) -> None:
    with zipfile.ZipFile(exported) as before, zipfile.ZipFile(model) as after:
        assert len(before.read(f"exported/{SAMPLE}")) > 0
        assert len(after.read(f"model/{SAMPLE}")) == 0
        assert __file__ in before.read(f"exported/{GRAPH}").decode()
        assert Path(__file__).name not in after.read(f"model/{GRAPH}").decode()


# Cards


def test_a_card_is_json_or_yaml_and_names_no_receptive_field_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(CARD_KEYS))
    card = read_card(tmp_path / "card.yaml")
    assert card == read_card(card_file(tmp_path))
    assert card.receptive_field is None
    assert card.normalization == Normalization(gain=(0.01,) * 3, bias=(-1.0,) * 3)
    assert read_card(card_file(tmp_path, receptive_field=9)).receptive_field == 9
    whole = ModelCard.from_json(card.to_json())
    (tmp_path / "whole.json").write_text(json.dumps(asdict(whole)))
    assert read_card(tmp_path / "whole.json") == whole


@pytest.mark.parametrize(
    ("content", "error", "expected_message"),
    [
        (None, SettingsError, "--card .* cannot be read: No such file"),
        ("[red, green]", ModelError, "a model card is a map of keys and values, not list"),
        ("bands: [red", ModelError, "no JSON or YAML"),
        ("bands: [red]\ntreshold: 0.5\nclasses: [a]", ModelError, "did you mean 'threshold'"),
        ("bands: [red]\nclasses: [a]\ntraining: {day: !!timestamp 2026-01-01}", ModelError, "tag .* is not accepted"),
        ("bands: [red]\nclasses: [a]\ntraining: {score: .nan}", ModelError, "NaN, which is no number of JSON"),
    ],
)
def test_a_card_file_that_is_none_is_refused(
    tmp_path: Path, content: str | None, error: type[Exception], expected_message: str
) -> None:
    if content is not None:
        (tmp_path / "card.yaml").write_text(content)
    with pytest.raises(error, match=expected_message):
        read_card(tmp_path / "card.yaml")


@pytest.mark.parametrize(
    ("changes", "expected_message"),
    [
        ({"bands": ["red"], "normalization": {}}, "takes 3 bands, and the card names 1: red"),
        ({"classes": ["roof"]}, "where its card .1 classes, margin 0, stride 4.* correct the card"),
        (
            {"stride": 1},
            "takes a height 0 modulo 4 from 8, and the card allows 0 modulo 1; .*set stride: 4 and size_offset: 0",
        ),
        ({"stride": 8, "size_offset": 2}, "set stride: 8 and size_offset: 0"),
        ({"margin": 2}, "margin 2"),
        ({"outputs": "probabilities"}, "values from .* say so in the card: outputs: logits"),
        ({"receptive_field": 31}, "depends on pixels further away than the card's receptive_field 31 px allows"),
        ({"tile_size": 64}, None),
        ({"receptive_field": 999}, None),  # wider than the trial tile: nothing to compare
    ],
)
def test_a_card_that_does_not_fit_the_network_is_refused_before_anything_is_written(
    exported: Path, tmp_path: Path, changes: Content, expected_message: str | None
) -> None:
    if expected_message is None:
        import_model(exported, card_file(tmp_path, **changes), tmp_path / "model.pt2")
        return
    with pytest.raises(ModelError, match=expected_message) as caught:
        import_model(exported, card_file(tmp_path, **changes), tmp_path / "model.pt2")
    assert str(caught.value).startswith(str(exported))
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_a_true_receptive_field_is_accepted(tmp_path: Path) -> None:
    """4 x 4 stem, 7 x 7 convolution on its grid, bilinear interpolation: 4 * (1 + 6 + 2) px at most."""
    network = export(Foreign(whole=False), tmp_path / "e.pt2", dims=DIMS)
    facts = import_model(network, card_file(tmp_path, receptive_field=41), tmp_path / "model.pt2")
    assert facts.card.receptive_field == 41
    with pytest.raises(ModelError, match="receptive_field 15 px"):
        import_model(network, card_file(tmp_path, receptive_field=15), tmp_path / "model.pt2")


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x[:, :2], dim=1)


class Shrinks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x[:, :2, ::2, ::2])


class Two(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x[:, :2], "aux": x[:, :2]}


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x[:, :2])


class Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.mul_(2)[:, :2])


class Company(nn.Module):
    """Batch norm by hand, over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid((x - x.mean((0, 2, 3), keepdim=True))[:, :2])


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x + torch.rand_like(x))[:, :2]


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.as_strided(x, (x.shape[0], 2, x.shape[2], x.shape[3]), x.stride())


@pytest.mark.parametrize(
    ("module", "changes", "expected_message"),
    [
        (Softmax(), {"activation": "softmax"}, None),
        (Nan(), {}, "returns NaN or infinity"),
        (Shrinks(), {}, "resize the output inside the network"),
        (Two(), {}, "returns 2 values where one tensor .* is due"),
        (Overwrites(), {}, "overwrites its input; begin its forward with tiles = tiles.clone"),
        (Company(), {}, "depends on the other tiles of its batch"),
        (Random(), {}, "uses torch.ops.aten.rand_like.default, which is not among the operators"),
        (Sparse(), {}, "uses torch.ops.aten.as_strided.default, which is not among the operators"),
        (Company(), {"activation": "softmax"}, "do not add up to 1"),
    ],
)
def test_a_network_that_does_not_behave_is_refused_with_the_way_out(
    tmp_path: Path, module: nn.Module, changes: Content, expected_message: str | None
) -> None:
    card = card_file(tmp_path, stride=1, outputs="probabilities", **changes)
    source = export(module, tmp_path / "e.pt2", shape=(2, 3, 32, 32))
    if expected_message is None:
        import_model(source, card, tmp_path / "model.pt2")
        return
    with pytest.raises(ModelError, match=expected_message):
        import_model(source, card, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.5)])
def test_an_export_in_training_mode_is_refused(tmp_path: Path, layer: nn.Module) -> None:
    source = export(nn.Sequential(layer, nn.Conv2d(3, 2, 1)), tmp_path / "e.pt2", training=True)
    with pytest.raises(ModelError, match=r"training mode; call network\.eval\(\)"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("shape", "dims", "changes", "expected_message"),
    [
        ((1, 3, 32, 48), None, {}, "tiles of 32 x 48 px only; export it with square tiles"),
        ((1, 3, 32, 32), None, {"tile_size": 64}, "tile_size is 64, and the export takes 32 px only"),
        ((1, 3, 32, 32), ({2: torch.export.Dim("s"), 3: torch.export.Dim("s")},), {}, "takes square tiles only"),
        ((1, 3, 32, 32), ({2: torch.export.Dim("h", max=40)},), {"tile_size": 32}, None),
    ],
)
def test_sizes_of_card_and_export_must_agree(
    tmp_path: Path, shape: tuple[int, ...], dims: Any, changes: Content, expected_message: str | None
) -> None:
    source = export(nn.Conv2d(3, 2, 1), tmp_path / "e.pt2", shape=shape, dims=dims)
    if expected_message is None:
        facts = import_model(source, card_file(tmp_path, **changes), tmp_path / "model.pt2")
        assert facts.sizes == "batch 1, height any to 40, width 32"
        return
    with pytest.raises(ModelError, match=expected_message):
        import_model(source, card_file(tmp_path, **changes), tmp_path / "model.pt2")


@pytest.mark.parametrize("out", ["model.safetensors", "nowhere/model.pt2"])
def test_the_target_is_checked_first(exported: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(SettingsError, match=r"--out .* must end in \.pt2 and lie in a folder that exists"):
        import_model(exported, card_file(tmp_path), tmp_path / out)


# Files that mean harm: nothing of theirs may run


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that exists after the test only where a payload ran."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def test_the_pickle_bomb_of_these_tests_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


def test_pickled_sample_inputs_are_never_read(exported: Path, tmp_path: Path, marker: Path) -> None:
    bomb = pickle.dumps(Bomb(marker))
    source = rewrite(exported, tmp_path / "bomb.pt2", lambda members: members.update({SAMPLE: bomb}))
    import_model(source, card_file(tmp_path), tmp_path / "model.pt2")
    load_predictor(tmp_path / "model.pt2", "cpu")
    assert bomb not in (tmp_path / "model.pt2").read_bytes()


@pytest.mark.parametrize("kind", ["weights/weight", "constants/tensor", "constants/custom_obj", "constants/opaque_obj"])
def test_pickled_weights_constants_and_objects_are_refused(
    exported: Path, tmp_path: Path, marker: Path, kind: str
) -> None:
    def plant(members: dict[str, bytes]) -> None:
        folder = f"data/{kind.partition('/')[0]}"
        members[f"data/{kind}_99"] = pickle.dumps(Bomb(marker))
        config = f"{folder}/model_{kind.partition('/')[0]}_config.json"
        content = json.loads(members[config])
        content["config"]["bomb"] = {"path_name": f"{kind.partition('/')[2]}_99", "is_param": False, "use_pickle": True}
        content["config"]["bomb"]["tensor_meta"] = next(iter(content["config"].values()))["tensor_meta"]
        members[config] = json.dumps(content).encode()

    source = rewrite(exported, tmp_path / "bomb.pt2", plant)
    with pytest.raises(ModelError, match=r"pickle, which could run code|could run code or is not known"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


@pytest.mark.parametrize("where", ["tensor_values", "sym_int_values"])
def test_a_size_expression_is_never_evaluated(exported: Path, tmp_path: Path, marker: Path, where: str) -> None:
    def plant(graph: Content) -> None:
        expression = {"expr_str": f"__import__('pathlib').Path({str(marker)!r}).touch()", "hint": {"as_int": 64}}
        if where == "tensor_values":
            graph[where]["x"]["sizes"][2] = {"as_expr": expression}
        else:
            graph[where]["sym_size_int"] = {"as_expr": expression}

    source = rewrite(exported, tmp_path / "bomb.pt2", edit_graph(plant))
    with pytest.raises(ModelError, match="which is no formula"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


@pytest.mark.parametrize(
    "expression",
    [
        "open('a')",
        "Symbol('s1').__class__",
        "Symbol('x y')",
        "Integer(2).func",
        "lambda: 1",
        "Mul(Integer(4), exec('1'))",
        "Add(1e9)",
        "Integer[0]",
        "_",
    ],
)
def test_only_formulas_pass_for_sizes(exported: Path, expression: str) -> None:
    content = Archive(exported).read_json(GRAPH)
    content["graph_module"]["graph"]["sym_int_values"]["x"] = {"as_expr": {"expr_str": expression}}  # type: ignore[index]
    with pytest.raises(ModelError, match="which is no formula"):
        read_graph(content)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.relu.out",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.relu.default.__call__",
        "torch.ops.mine.relu.default",
        "torch.ops.load_library",
        "torch.ops.higher_order.cond",
        "torch.ops.quantized.conv2d.new",
        "torch.hub.load",
        "torch.utils.cpp_extension.load",
        "torch.serialization.load",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "builtins.exec",
        "os.system",
        "#extension:op",
    ],
)
def test_an_operator_that_is_not_listed_is_refused(exported: Path, tmp_path: Path, marker: Path, target: str) -> None:
    def plant(graph: Content) -> None:
        text = {"name": "filename", "arg": {"as_string": str(marker)}, "kind": 1}
        shared = {"name": "shared", "arg": {"as_bool": True}, "kind": 1}
        graph["nodes"].insert(
            0,
            {"target": target, "inputs": [text, shared], "outputs": [{"as_tensor": {"name": "evil"}}], "metadata": {}},
        )

    source = rewrite(exported, tmp_path / "bomb.pt2", edit_graph(plant))
    with pytest.raises(ModelError, match="which is not among the operators that are run"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


@pytest.mark.parametrize("attribute", ["overloads", "op", "schemas", "nothing"])
def test_an_overload_must_be_one(exported: Path, tmp_path: Path, attribute: str) -> None:
    def plant(graph: Content) -> None:
        graph["nodes"][0]["target"] = f"torch.ops.aten.relu.{attribute}"

    source = rewrite(exported, tmp_path / "bomb.pt2", edit_graph(plant))
    with pytest.raises(ModelError, match=f"has no operator torch.ops.aten.relu.{attribute}"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


@pytest.mark.parametrize(
    "argument",
    [
        {"as_custom_obj": {"name": "a", "class_fqn": "b"}},
        {"as_operator": "torch.hub.load"},
        {"as_graph": {"name": "a", "graph": {}}},
        {"as_tensor": {"name": "x.__class__"}},
        {"as_tensor": {"name": "x): import os #"}},
        {"as_string": "a" * 1000},
        {"as_scalar_type": 999},
        {"as_nothing": 1},
        {"as_tensor": {"name": "later"}},
        {},
    ],
)
def test_an_argument_that_is_no_number_text_or_known_name_is_refused(
    exported: Path, tmp_path: Path, argument: Content
) -> None:
    def plant(graph: Content) -> None:
        graph["nodes"][0]["inputs"][0]["arg"] = argument

    source = rewrite(exported, tmp_path / "bad.pt2", edit_graph(plant))
    with pytest.raises(ModelError):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


def test_size_arithmetic_takes_numbers_alone(exported: Path) -> None:
    """`"a" * 10**12` would be a terabyte."""
    content = Archive(exported).read_json(GRAPH)
    inputs = [{"name": "", "arg": {"as_string": "a"}}, {"name": "", "arg": {"as_int": 10**12}}]
    node = {"target": "_operator.mul", "inputs": inputs, "outputs": [{"as_sym_int": {"as_name": "big"}}]}
    content["graph_module"]["graph"]["nodes"].append(node)  # type: ignore[index]
    with pytest.raises(ModelError, match="computes with sizes, which are numbers"):
        read_graph(content)


def test_every_listed_operator_is_deterministic_and_of_tensors() -> None:
    """Torch itself marks what draws random numbers; those here do so in training only, which is refused."""
    in_training = {"dropout", "feature_dropout", "alpha_dropout", "rrelu", "scaled_dot_product_attention"}
    for name in OPERATORS:
        packet = getattr(torch.ops.aten, name)
        seeded = any(torch.Tag.nondeterministic_seeded in getattr(packet, each).tags for each in packet.overloads())
        assert seeded == (name in in_training), name
        assert base_name(f"torch.ops.aten.{name}.default") == name


PLACES = st.lists(st.integers(0, 10**6), min_size=1, max_size=12)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just({"as_tensor": {"name": "x"}}),
    st.sampled_from(["torch.ops.aten.relu.default", "torch.ops.aten.cat.default", "_operator.mul", "x", "as_int"]),
)


def replaced(value: Any, places: list[int], junk: Any) -> Any:
    """A copy of a JSON value with one part, found by indices from the top, replaced."""
    if not places or not isinstance(value, dict | list) or not value:
        return junk
    keys = list(value) if isinstance(value, dict) else range(len(value))
    chosen = keys[places[0] % len(keys)]
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[chosen] = replaced(value[chosen], places[1:], junk)
    return copy


@given(places=PLACES, junk=JUNK)
def test_any_damaged_graph_is_refused_or_computes(model: Path, places: list[int], junk: Any) -> None:
    archive = Archive(model)
    content, tensors = replaced(archive.read_json(GRAPH), places, junk), read_tensors(archive)
    try:
        network = ExportedNetwork(read_graph(content), tensors)
    except ModelError:
        return
    with suppress(ModelError, RuntimeError, TypeError, ValueError, IndexError):
        network(torch.zeros((1, 3, 8, 8)))


@pytest.mark.parametrize(
    "name", ["data/aotinductor/model/x.so", "models/other.json", "code/model.py", "../../escape", "x"]
)
def test_a_member_that_is_not_known_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    source = rewrite(exported, tmp_path / "more.pt2", lambda members: members.update({name: b"1"}))
    with pytest.raises(ModelError, match="which could run code or is not known"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


def test_a_torchscript_archive_is_refused_as_a_pickle(exported: Path, tmp_path: Path) -> None:
    source = rewrite(exported, tmp_path / "script.pt2", lambda members: members.update({"data.pkl": b"1"}))
    with pytest.raises(ModelError, match="pickle or TorchScript archive, which is never loaded"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


def test_nothing_unpacks_to_more_than_the_file_holds(exported: Path, tmp_path: Path) -> None:
    source = rewrite(
        exported, tmp_path / "zip.pt2", lambda members: members.update({SAMPLE: bytes(10**6)}),
        compression=zipfile.ZIP_DEFLATED,
    )  # fmt: skip
    with pytest.raises(ModelError, match="is compressed, which torch"):
        import_model(source, card_file(tmp_path), tmp_path / "model.pt2")


def test_two_members_of_one_name_are_refused(exported: Path, tmp_path: Path) -> None:
    source = rewrite(exported, tmp_path / "twice.pt2", lambda members: None)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(source, "a") as archive:
        archive.writestr(f"model/{GRAPH}", b"{}")
    with pytest.raises(ModelError, match="one name twice"):
        Archive(source)


def test_members_that_share_bytes_are_refused(exported: Path, tmp_path: Path) -> None:
    """A zip bomb without compression: the directory names one part of the file many times."""
    source = rewrite(exported, tmp_path / "shared.pt2", lambda members: None)
    with zipfile.ZipFile(source, "a") as archive:
        large = max(archive.infolist(), key=lambda member: member.file_size)
        for count in range(3):
            copy = zipfile.ZipInfo(f"model/data/extra/{count}")
            for fact in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, fact, getattr(large, fact))
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="claim more bytes than the file has"):
        Archive(source)


@pytest.mark.parametrize(
    ("size", "expected_message"),
    [([{"as_int": 10**9}], "numbers are stored where shape"), ([{"as_int": -4}], "is no size")],
)
def test_a_tensor_larger_than_its_bytes_is_refused(
    exported: Path, tmp_path: Path, size: list[Mapping[str, int]], expected_message: str
) -> None:
    def plant(members: dict[str, bytes]) -> None:
        config = "data/weights/model_weights_config.json"
        content = json.loads(members[config])
        content["config"]["norm.bias"]["tensor_meta"]["sizes"] = size
        members[config] = json.dumps(content).encode()

    with pytest.raises(ModelError, match=f"the tensor norm.bias cannot be read: .*{expected_message}"):
        import_model(rewrite(exported, tmp_path / "big.pt2", plant), card_file(tmp_path), tmp_path / "model.pt2")


# Damage


def test_a_file_that_was_changed_after_the_import_is_refused(model: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        weight = bytearray(members["data/weights/weight_0"])
        weight[5] ^= 1
        members["data/weights/weight_0"] = bytes(weight)

    with pytest.raises(ModelError, match="does not match its SHA-256"):
        load_exported(rewrite(model, tmp_path / "changed.pt2", change))


def test_another_card_in_the_file_is_noticed(model: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members[CARD] = members[CARD].replace(b"roof", b"barn")

    with pytest.raises(ModelError, match="does not match its SHA-256"):
        load_exported(rewrite(model, tmp_path / "changed.pt2", change))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(model: Path, tmp_path: Path, share: float) -> None:
    content = model.read_bytes()
    (tmp_path / "short.pt2").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"not an archive of torch\.export\.save"):
        load_predictor(tmp_path / "short.pt2", "cpu")


def test_a_flipped_bit_is_noticed(model: Path, tmp_path: Path) -> None:
    content = bytearray(model.read_bytes())
    with zipfile.ZipFile(model) as archive:
        at = archive.getinfo("model/data/weights/weight_0").header_offset + 100
    content[at] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    with pytest.raises(ModelError, match="is damaged"):
        load_exported(tmp_path / "flipped.pt2")


def test_a_missing_file_and_one_without_a_card_name_the_remedy(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        load_predictor(tmp_path / "nowhere.pt2", "cpu")
    for read in (load_exported, describe_exported):
        with pytest.raises(
            ModelError, match=r"without a model card; join them with scenemill import-model exported\.pt2"
        ):
            read(exported)


def test_an_export_of_another_schema_names_the_export_command(exported: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members[GRAPH] = members[GRAPH].replace(b'"major": 8', b'"major": 9')

    with pytest.raises(ModelError, match="schema 9, not 8: write it with torch"):
        import_model(rewrite(exported, tmp_path / "new.pt2", change), card_file(tmp_path), tmp_path / "model.pt2")
