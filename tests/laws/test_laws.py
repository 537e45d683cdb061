"""The promises of the design, as laws: drawn sizes, tilings, blends, nodata and regions.

1 seamless, 2 exact, 3 independent of how it was cut, 5 nodata to the end, 6 whole polygons. 4, memory
that does not follow the scene, is measured at scale by `benchmarks/pipeline.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.features import rasterize
from support.fake_mosaic import classes_source

from pipeline.config import SegmentSpec
from pipeline.grid.area import Area
from pipeline.grid.area_pixels import rasterize_area
from pipeline.inference.blend import CROP, Blend, StripBlender
from pipeline.inference.precision_check import choose_precision
from pipeline.inference.region import run as region
from pipeline.inference.region.job import RegionJob, join_regions
from pipeline.inference.region.run import infer_region
from pipeline.inference.tiling.regions import plan_regions
from pipeline.inference.tiling.tiles import TilingSpec, plan_tiles, resolve_tiling
from pipeline.model.card import ModelCard, Normalization
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.model.networks.unet import UNet, UNetSpec, receptive_field
from pipeline.model.predictor.ensemble import EnsemblePredictor
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.model.predictor.protocol import InferenceSpec, identity_of
from pipeline.mosaic.levels import LevelType
from pipeline.mosaic.writer import MosaicSpec
from pipeline.polygons.shaping import PolygonBatch, PolygonSpec
from pipeline.polygons.stream import vectorize
from pipeline.scene.describe import describe_scene
from pipeline.segment import segment_scene

BLENDS: list[Blend] = ["hann", "pyramid", "average", "crop", "exact"]
POINTWISE = ModelCard(bands=("red",), classes=("roof",))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One way of cutting the work."""

    tile_size: int
    overlap: int
    blend: Blend
    rows: int = 1
    cols: int = 1
    threads: int = 1
    batch_size: int = 0
    compute_threads: int = 0


@st.composite
def cut_scenes(draw: st.DrawFn, longest: int = 48) -> tuple[tuple[int, int], Cut]:
    """A scene's shape, from 1 x 1 px, and a way of cutting it into at most about 8 x 8 tiles."""
    tile = draw(st.integers(1, longest))
    step = draw(st.integers(max(1, tile // 4), tile))
    shape = draw(st.tuples(*[st.integers(1, max(2, 7 * step))] * 2))
    return shape, Cut(
        tile_size=tile,
        overlap=tile - step,
        blend=draw(st.sampled_from(BLENDS)),
        rows=draw(st.integers(1, 3)),
        cols=draw(st.integers(1, 3)),
        threads=draw(st.integers(1, 2)),
        batch_size=draw(st.integers(0, 5)),
        compute_threads=draw(st.integers(0, 3)),
    )


@contextmanager
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp())
    try:
        yield place
    finally:
        shutil.rmtree(place)


def write_scene(path: Path, pixels: NDArray[Any], *, nodata: float | None = None, block: int | None = None) -> Path:
    tiled = {} if block is None else {"tiled": True, "blockxsize": block, "blockysize": block}
    profile = {
        "driver": "GTiff",
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": pixels.dtype,
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **profile, **tiled) as dataset:
        dataset.write(pixels)
        for number in range(1, len(pixels) + 1):
            dataset.set_band_description(number, ("red", "green", "blue", "nir")[number - 1])
    return path


def mosaic_of(
    place: Path,
    scene_path: Path,
    predictor: Any,
    card: ModelCard,
    cut: Cut,
    dtype: LevelType = "float32",
    area: Area | None = None,
) -> tuple[NDArray[Any], bytes, bytes]:
    """Probabilities as stored, and the bytes of both rasters."""
    scene = describe_scene(scene_path, card=card)
    tiling = resolve_tiling(TilingSpec(tile_size=cut.tile_size, overlap=cut.overlap), card, exact=cut.blend == "exact")
    plan = plan_tiles(scene.grid.shape, tiling)
    work = Path(tempfile.mkdtemp(dir=place))
    job = RegionJob(
        scene=scene,
        plan=plan,
        card=card,
        identity=identity_of(predictor),
        precision=choose_precision(scene, plan, card, predictor).precision,
        blend=cut.blend,
        inference=InferenceSpec(batch_size=cut.batch_size, threads=cut.compute_threads),
        mosaic=MosaicSpec(dtype=dtype),
        threshold=None,
        threads=cut.threads,
        tags={},
        area=None if area is None else rasterize_area(area, scene.grid),
        folder=work,
    )
    regions = plan_regions(plan, rows=cut.rows, cols=cut.cols, core_only=cut.blend in CROP)
    join_regions(job, [infer_region(job, each, predictor) for each in regions], work)
    with rasterio.open(work / "probability.tif") as dataset:
        stored = dataset.read()
    return stored, (work / "probability.tif").read_bytes(), (work / "mask.tif").read_bytes()


# Promise 1: seamless by law


@settings(max_examples=60)
@given(cut_scenes(), st.floats(0, 1, width=32))
def test_a_constant_model_gives_a_constant_mosaic(drawn: tuple[tuple[int, int], Cut], constant: float) -> None:
    shape, cut = drawn
    with folder() as place:
        path = write_scene(place / "scene.tif", np.ones((1, *shape), np.uint8))
        model = lambda tiles: np.full((len(tiles), 1, *tiles.shape[2:]), constant, np.float32)  # noqa: E731
        stored, _, _ = mosaic_of(place, path, model, POINTWISE, cut)
    assert (stored == np.float32(constant)).all()


@settings(max_examples=60)
@given(cut_scenes(), st.integers(0, 2**32 - 1), st.sampled_from([None, 16]))
def test_a_pointwise_model_gives_the_same_mosaic_for_every_tiling(
    drawn: tuple[tuple[int, int], Cut], seed: int, block: int | None
) -> None:
    shape, cut = drawn
    pixels = np.random.default_rng(seed).random((1, *shape), np.float32)
    with folder() as place:
        path = write_scene(place / "scene.tif", pixels, block=block)
        stored, _, _ = mosaic_of(place, path, lambda tiles: tiles**2, POINTWISE, cut)
    assert (stored == pixels**2).all()


@settings(max_examples=40)
@given(cut_scenes(), st.integers(0, 2**32 - 1))
def test_disagreeing_tiles_are_weighted_by_the_contract(drawn: tuple[tuple[int, int], Cut], seed: int) -> None:
    """`mosaic[p] = sum(w * p) / sum(w)` against a direct sum in float64 over the plan."""
    shape, cut = drawn
    cut = replace(cut, rows=1, cols=1, batch_size=1)
    generator = np.random.default_rng(seed)
    answers: list[float] = []

    def model(tiles: NDArray[Any]) -> NDArray[Any]:
        answers.append(generator.random())
        return np.full((1, 1, *tiles.shape[2:]), answers[-1], np.float32)

    with folder() as place:
        path = write_scene(place / "scene.tif", np.ones((1, *shape), np.uint8))
        stored, _, _ = mosaic_of(place, path, model, POINTWISE, cut)
    assert np.allclose(stored[0], _direct_sum(shape, cut, answers), atol=1e-6)


def _direct_sum(shape: tuple[int, int], cut: Cut, answers: list[float]) -> NDArray[Any]:
    tiling = resolve_tiling(
        TilingSpec(tile_size=cut.tile_size, overlap=cut.overlap), POINTWISE, exact=cut.blend == "exact"
    )
    total, weights = np.zeros(shape), np.zeros(shape)
    for tile, answer in zip(plan_tiles(shape, tiling), answers, strict=True):
        if cut.blend in ("crop", "exact"):
            total[tile.core.toslices()] += answer
            weights[tile.core.toslices()] += 1
            continue
        rows, cols = tile.window.toslices()
        weight = np.outer(*(_weight(int(n), cut.blend) for n in (tile.window.height, tile.window.width)))
        inside = weight[: shape[0] - rows.start, : shape[1] - cols.start]
        total[rows, cols] += inside * answer
        weights[rows, cols] += inside
    return total / weights


def _weight(n: int, blend: Blend) -> NDArray[Any]:
    x = np.arange(n) + 0.5
    return {"hann": np.sin(np.pi * x / n) ** 2, "pyramid": np.minimum(x, n - x) + 0.5, "average": np.ones(n)}[blend]


# Promise 2: exact when asked


def checkpoint(place: Path, spec: UNetSpec, seed: int = 0) -> Path:
    """An untrained U-Net whose probabilities spread over 0..1, and its card."""
    torch.manual_seed(seed)
    network = UNet(spec)
    side = 192 + (spec.size_offset - 192) % spec.stride
    noise = torch.randn((1, spec.bands, side, side))
    with torch.no_grad():
        network.eval()
        network.head.weight.mul_(2 / network(noise).std())
    card = ModelCard(
        bands=("red", "green", "blue")[: spec.bands],
        classes=("roof", "road", "water")[: spec.classes],
        outputs="logits",
        normalization=Normalization.standard([128.0] * spec.bands, [64.0] * spec.bands),
        stride=spec.stride,
        margin=spec.margin,
        size_offset=spec.size_offset,
        receptive_field=receptive_field(spec),
        aligned_halo=spec.aligned_halo,
    )
    path = place / "model.safetensors"
    save_checkpoint(path, network, card)
    return path


def whole_pass(predictor: LoadedPredictor, pixels: NDArray[Any]) -> NDArray[Any]:
    """One forward pass over the whole scene, mirrored up to the stride and by the margin."""
    card = predictor.card
    padding = []
    for length in pixels.shape[1:]:
        beyond = (card.size_offset - length - 2 * card.margin) % card.stride
        padding.append((card.margin, card.margin + beyond))
    padded = np.pad(pixels.astype(np.float32), [(0, 0), *padding], mode="reflect")
    tensor = torch.from_numpy((padded - 128) / 64)[None]
    return predictor(tensor)[0, :, : pixels.shape[1], : pixels.shape[2]].numpy()


BOUND = {"float32": 1e-5, "bfloat16": 0.01}
"""How far the mosaic of `exact` may be from one pass; bfloat16 sums in another order, and rounds each sum."""


@settings(max_examples=8)
@given(
    st.tuples(st.integers(20, 150), st.integers(20, 150)),
    st.sampled_from(
        [
            UNetSpec(bands=3, classes=1, depth=2, base_channels=8),
            UNetSpec(bands=3, classes=2, depth=2, base_channels=8, upsampling="bilinear", norm="none"),
            UNetSpec(bands=1, classes=1, depth=2, base_channels=8, padding="valid"),
        ]
    ),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_exact_equals_one_pass_over_the_whole_scene(
    shape: tuple[int, int], spec: UNetSpec, seed: int, regions: int
) -> None:
    pixels = np.random.default_rng(seed).integers(1, 255, (spec.bands, *shape), np.uint8)
    with folder() as place:
        predictor = load_predictor(checkpoint(place, spec), "cpu", precision="float32")
        card = predictor.card
        size = 128 + (card.size_offset - 128) % card.stride
        tiling = resolve_tiling(TilingSpec(tile_size=size), card, exact=True)
        cut = Cut(tile_size=size, overlap=tiling.overlap, blend="exact", rows=regions, cols=regions)
        stored, _, _ = mosaic_of(place, write_scene(place / "scene.tif", pixels), predictor, card, cut)
        expected = whole_pass(predictor, pixels)
    assert np.abs(stored - expected).max() < 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_exact_equals_one_pass_for_the_reference_depth(tmp_path: Path, precision: Any) -> None:
    """Depth 4 as in the paper: stride 16, a receptive field of about 190 px."""
    spec = UNetSpec(bands=3, classes=1, depth=4, base_channels=8)
    predictor = load_predictor(checkpoint(tmp_path, spec), "cpu", precision=precision)
    pixels = np.random.default_rng(5).integers(1, 255, (3, 431, 517), np.uint8)
    tiling = resolve_tiling(TilingSpec(tile_size=256), predictor.card, exact=True)
    cut = Cut(tile_size=256, overlap=tiling.overlap, blend="exact")
    scene = write_scene(tmp_path / "scene.tif", pixels)
    stored, _, _ = mosaic_of(tmp_path, scene, predictor, predictor.card, cut)
    assert np.abs(stored - whole_pass(predictor, pixels)).max() < BOUND[precision]


# Promise 3: independent of how it was cut


@settings(max_examples=40)
@given(cut_scenes(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_any_number_of_regions_gives_the_same_bytes(
    drawn: tuple[tuple[int, int], Cut], rows: int, cols: int, seed: int
) -> None:
    shape, cut = drawn
    pixels = np.random.default_rng(seed).integers(0, 255, (1, *shape), np.uint8)
    with folder() as place:
        path = write_scene(place / "scene.tif", pixels, nodata=0, block=16)
        model = lambda tiles: (tiles + tiles.mean(axis=(2, 3), keepdims=True)) / 510  # noqa: E731
        one = mosaic_of(place, path, model, POINTWISE, replace(cut, rows=1, cols=1), "uint8")
        other = mosaic_of(place, path, model, POINTWISE, replace(cut, rows=rows, cols=cols), "uint8")
    assert one[1:] == other[1:]


@pytest.mark.parametrize("form", ["float32", "bfloat16", "plain module", "ensemble"])
def test_a_real_network_gives_the_same_bytes_for_any_regions_threads_workers_and_batches(
    tmp_path: Path, form: str
) -> None:
    predictor, card = model_in_form(tmp_path, form)
    pixels = np.random.default_rng(1).integers(0, 255, (3, 300, 333), np.uint8)
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=0, block=64)
    cut = Cut(tile_size=96, overlap=24, blend="hann", batch_size=4, compute_threads=1)
    ways = [
        cut,
        replace(cut, rows=3, compute_threads=2),
        replace(cut, rows=2, cols=2, threads=2, compute_threads=5),
        replace(cut, rows=4, batch_size=3),
        replace(cut, batch_size=1, compute_threads=3),
        replace(cut, batch_size=2),
    ]
    results = [mosaic_of(tmp_path, path, predictor, card, way)[1:] for way in ways]
    for threads in (1, 3):
        with torch_threads(threads):
            results.append(mosaic_of(tmp_path, path, predictor, card, cut)[1:])
    assert all(result == results[0] for result in results)


def model_in_form(place: Path, form: str) -> tuple[Any, ModelCard]:
    """A predictor of a network of depth 3, and its card."""
    spec = UNetSpec(bands=3, classes=2, depth=3, base_channels=8)
    path = checkpoint(place, spec)
    loaded = load_checkpoint(path)
    if form == "plain module":
        return loaded.network, loaded.card
    if form == "ensemble":
        (place / "other").mkdir()
        both = [
            load_predictor(each, "cpu", precision="float32") for each in (path, checkpoint(place / "other", spec, 1))
        ]
        averaged = EnsemblePredictor(both)
        return averaged, averaged.card
    return load_predictor(path, "cpu", precision=form), loaded.card  # type: ignore[arg-type]


def test_a_device_too_small_for_a_strip_runs_it_in_parts_to_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cramped(StripBlender):
        def __init__(self, *shares: Any, span: slice, **settings: Any) -> None:
            if span.stop - span.start > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(*shares, span=span, **settings)

    pixels = np.random.default_rng(3).integers(0, 255, (1, 90, 330), np.uint8)
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=0, block=16)
    spec = SegmentSpec(tiling=TilingSpec(tile_size=32, overlap=8))
    model = lambda tiles: (tiles + tiles.mean(axis=(2, 3), keepdims=True)) / 510  # noqa: E731
    reports = []
    for name in ("roomy", "cramped"):
        reports.append(segment_scene(path, tmp_path / name, predictor=model, card=POINTWISE, spec=spec))
        monkeypatch.setattr(region, "StripBlender", Cramped)
    assert [report.statistics.regions_split for report in reports] == [0, 1]
    for name in ("probability.tif", "mask.tif", "preview.png"):
        roomy, cramped = ((Path(report.folder) / name).read_bytes() for report in reports)
        assert roomy == cramped, name


@pytest.mark.gpu
def test_on_a_gpu_a_scene_repeats_to_the_byte_and_is_that_of_the_cpu(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, UNetSpec(bands=3, classes=2, depth=3, base_channels=8))
    pixels = np.random.default_rng(1).integers(0, 255, (3, 700, 533), np.uint8)
    scene = write_scene(tmp_path / "scene.tif", pixels, nodata=0, block=64)
    spec = SegmentSpec(
        tiling=TilingSpec(tile_size=96, overlap=24), inference=InferenceSpec(batch_size=4, deterministic=True)
    )
    here = segment_scene(scene, tmp_path / "cpu", predictor=load_predictor(path, "cpu", precision="float32"), spec=spec)
    there = [
        segment_scene(scene, tmp_path / name, predictor=load_predictor(path, "cuda"), spec=spec) for name in ("a", "b")
    ]
    first, second = ((Path(report.folder) / "probability.tif").read_bytes() for report in there)
    assert first == second
    with (
        rasterio.open(Path(here.folder) / "probability.tif") as cpu,
        rasterio.open(Path(there[0].folder) / "probability.tif") as gpu,
    ):
        assert np.abs(cpu.read().astype(int) - gpu.read()).max() <= np.ceil(254 * 0.01)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(usual)


def test_worker_processes_give_the_same_bytes_and_polygons(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    model = checkpoint(tmp_path, UNetSpec(bands=3, classes=1, depth=2, base_channels=8))
    pixels = np.random.default_rng(2).integers(0, 255, (3, 260, 210), np.uint8)
    path = write_scene(tmp_path / "scene.tif", pixels, nodata=0, block=64)
    spec = SegmentSpec(tiling=TilingSpec(tile_size=64, overlap=16))
    predictor = load_predictor(model, "cpu")
    here = segment_scene(path, tmp_path / "here", predictor=predictor, spec=spec)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        there = segment_scene(path, tmp_path / "there", predictor=predictor, spec=spec, client=client)
    assert (here.polygons, here.area_m2, here.statistics.tiles_run) != (0, {}, 0)
    for name in ("probability.tif", "mask.tif", "polygons.gpkg"):
        assert (Path(here.folder) / name).read_bytes() == (Path(there.folder) / name).read_bytes()


# Promise 4: memory does not follow the scene

MEASURE = """
import resource, sys
import numpy as np
from pipeline import ModelCard, segment_scene
from pipeline.storage import gdal as handles
handles.CACHE_BYTES = 4 * 2**20  # GDAL's cache is bounded, too, but fills up with the larger scene only
card = ModelCard(bands=("red",), classes=("bright",))
segment_scene(sys.argv[1], sys.argv[2], predictor=lambda tiles: tiles / 255, card=card)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mib(place: Path, rows: int) -> int:
    """Peak memory of a process that segments a scene of 1024 columns and so many rows."""
    pattern = np.sin(np.arange(1024) / 40)[:, None] * np.sin(np.arange(1024) / 50) * 100 + 128
    path = write_scene(place / f"rows{rows}.tif", np.tile(pattern.astype(np.uint8), (rows // 1024, 1))[None], block=512)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(place / "out")], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_memory_does_not_follow_the_height_of_a_scene(tmp_path: Path) -> None:
    """Twelve times the rows would be 176 MiB more in a single float32 sum over the scene."""
    assert peak_mib(tmp_path, 48 * 1024) - peak_mib(tmp_path, 4 * 1024) < 70


# An area: what it leaves is what would have been there


@st.composite
def areas(draw: st.DrawFn, shape: tuple[int, int]) -> shapely.Geometry:
    """One or two polygons in pixels, perhaps with a hole, that may reach past the scene."""
    longest = max(shape)
    place = st.floats(-0.2 * longest, 1.2 * longest, allow_nan=False)
    drawn = []
    for _ in range(draw(st.integers(1, 2))):
        points = draw(st.lists(st.tuples(place, place), min_size=3, max_size=6))
        hull = shapely.convex_hull(shapely.multipoints(points)).buffer(0.3)
        hole = draw(st.booleans()) * 0.4
        drawn.append(hull - shapely.affinity.scale(hull, hole, hole) if hole else hull)
    return shapely.union_all(drawn)


def ramps(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Says where in its tile a pixel lies, so that every tile that adds to a pixel can be told from the result."""
    _, _, height, width = tiles.shape
    down, across = np.arange(height)[:, None] / height, np.arange(width) / width
    return np.broadcast_to((down + across) / 2, (len(tiles), 1, height, width)).astype(np.float32) * tiles[:, :1]


@settings(max_examples=20)
@given(st.data())
def test_inside_an_area_is_what_a_run_without_it_gives_and_outside_is_nodata(data: st.DataObject) -> None:
    shape, cut = data.draw(cut_scenes(longest=24))
    shown, dtype = data.draw(areas(shape)), data.draw(st.sampled_from(["uint8", "float32"]))
    with folder() as place:
        path = write_scene(place / "scene.tif", np.random.default_rng(0).random((1, *shape), np.float32))
        grid = describe_scene(path).grid
        placed = shapely.affinity.affine_transform(shown, grid.transform.to_shapely()).buffer(0)
        whole, _, _ = mosaic_of(place, path, ramps, POINTWISE, replace(cut, rows=1, cols=1), dtype)
        clipped, _, _ = mosaic_of(place, path, ramps, POINTWISE, cut, dtype, Area(name="a", crs=grid.crs, shape=placed))
    inside = rasterize([shown], out_shape=shape, fill=0).astype(bool)
    blank = np.isnan(clipped[0]) if dtype == "float32" else clipped[0] == 255
    assert np.array_equal(clipped[:, inside], whole[:, inside])
    assert np.array_equal(blank, ~inside)


# Promise 5: nodata is nodata to the end


@settings(max_examples=30)
@given(cut_scenes(), st.integers(0, 99), st.sampled_from(["corner", "band", "specks", "all", "none"]))
def test_invalid_pixels_are_nodata_and_tiles_without_valid_pixels_are_skipped(
    drawn: tuple[tuple[int, int], Cut], seed: int, pattern: str
) -> None:
    shape, cut = drawn
    pixels = np.random.default_rng(seed).integers(1, 255, (1, *shape), np.uint8)
    invalid = _pattern(pattern, shape, seed)
    pixels[0, invalid] = 0

    def model(tiles: NDArray[Any]) -> NDArray[Any]:
        assert all((tile != 0).any() for tile in tiles), "a tile without a valid pixel reached the network"
        return np.full((len(tiles), 1, *tiles.shape[2:]), 0.75, np.float32)

    with folder() as place:
        path = write_scene(place / "scene.tif", pixels, nodata=0)
        stored, _, _ = mosaic_of(place, path, model, POINTWISE, cut)
    assert (np.isnan(stored[0]) == invalid).all()
    assert (stored[0][~invalid] == 0.75).all()


def _pattern(name: str, shape: tuple[int, int], seed: int) -> NDArray[np.bool_]:
    rows, cols = np.indices(shape)
    return {
        "corner": rows + cols < sum(shape) // 3,
        "band": (rows > shape[0] // 3) & (rows < 2 * shape[0] // 3),
        "specks": np.random.default_rng(seed).random(shape) < 0.2,
        "all": np.ones(shape, bool),
        "none": np.zeros(shape, bool),
    }[name]


# Promise 6: whole, valid polygons


@settings(max_examples=25)
@given(
    cut_scenes(),
    st.integers(0, 99),
    st.sampled_from([4, 8]),
    st.sampled_from(["corner", "specks", "none"]),
)
def test_polygons_of_a_scene_burn_back_to_its_mask(
    drawn: tuple[tuple[int, int], Cut], seed: int, connectivity: Any, pattern: str
) -> None:
    shape, cut = drawn
    pixels = np.random.default_rng(seed).integers(1, 255, (1, *shape), np.uint8)
    pixels[0, _pattern(pattern, shape, seed)] = 0
    spec = SegmentSpec(
        tiling=TilingSpec(tile_size=cut.tile_size, overlap=cut.overlap),
        blend=cut.blend,
        polygons=PolygonSpec(connectivity=connectivity),
    )
    with folder() as place:
        path = write_scene(place / "scene.tif", pixels, nodata=0)
        report = segment_scene(path, place, predictor=lambda tiles: tiles / 255, card=POINTWISE, spec=spec)
        with rasterio.open(Path(report.folder) / "mask.tif") as dataset:
            mask, transform = dataset.read(1), dataset.transform
        geometry, area = _polygons(Path(report.folder) / "polygons.gpkg")
    expected = np.where(pixels[0] == 0, 255, (np.floor(pixels[0] / np.float32(255) * 254 + 0.5) >= 127).astype(int))
    assert (mask == expected).all()
    burnt = rasterize(geometry, out_shape=shape, transform=transform) if len(geometry) else np.zeros(shape)
    assert ((burnt == 1) == (mask == 1)).all()
    assert shapely.is_valid(geometry).all()
    assert np.isclose(area.sum(), (mask == 1).sum() * 0.25, rtol=2e-3)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 999),
    st.integers(1, 45),
    st.sampled_from([4, 8]),
)
def test_polygons_do_not_depend_on_the_blocks_they_are_traced_in(
    shape: tuple[int, int], seed: int, block_size: int, connectivity: Any
) -> None:
    source = classes_source(np.random.default_rng(seed).choice([0, 1, 2, 255], shape, p=[0.3, 0.4, 0.2, 0.1]))
    spec = PolygonSpec(connectivity=connectivity)
    whole, cut = (_as_set(vectorize(source, spec, block_size=size)) for size in (64, block_size))
    assert whole == cut


def _as_set(batches: Iterator[PolygonBatch]) -> set[tuple[bytes, int, int, float, float]]:
    return {
        (shapely.to_wkb(shapely.normalize(shape)), int(value), int(count), float(mean), float(peak))
        for b in batches
        for shape, value, count, mean, peak in zip(
            b.geometry, b.class_value, b.pixel_count, b.mean_probability, b.max_probability, strict=True
        )
    }


def _polygons(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    import geopandas

    frame = geopandas.read_file(path, layer="polygons")
    return frame.geometry.to_numpy(), frame["area_m2"].to_numpy()
