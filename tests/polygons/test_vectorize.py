from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import shapes
from rasterio.windows import Window
from scipy import ndimage
from support.fake_mosaic import NODATA, FakeLevels, as_set, burnt, classes_source, joined, one_class_source, polygons_of

from pipeline.errors import SettingsError
from pipeline.model.card import ModelCard
from pipeline.mosaic.classify import Classification
from pipeline.mosaic.levels import INVALID
from pipeline.polygons import stream as vectorize_module
from pipeline.polygons.block_seams import SeamJoiner
from pipeline.polygons.blocks import TracingRule, trace_block
from pipeline.polygons.holes import HoleFilter
from pipeline.polygons.shaping import PolygonSpec
from pipeline.polygons.stream import LevelSource, pixel_sides_m, vectorize
from pipeline.polygons.tracing.outlines import Seams

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MASKS = arrays(np.uint8, SIZES, elements=st.sampled_from([0, 0, 0, 1, 1, 1, 1, 2, 3, NODATA]))
CONNECTIVITY = st.sampled_from([4, 8])

HOLE_IN_HOLE = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 0, 1, 0, 1],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 0, 0, 0, 0, 1],
        [1, 1, 1, 1, 1, 1, 1],
    ],
    np.uint8,
)
# A component that touches itself at (5, 3), where the two sides only meet outside their block of 2 px.
SELF_TOUCH_ACROSS_BLOCKS = np.array(
    [
        [1, 0, 0, 1, 0, 1, 0, 1],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 1, 1],
        [0, 1, 1, 1, 1, 0, 1, 1],
        [1, 1, 0, 1, 1, 0, 0, 1],
    ],
    np.uint8,
)


def natural(shape: tuple[int, int], *, classes: int = 4, sigma: float = 1.2, seed: int = 0) -> np.ndarray:
    """A mask of smooth patches, values 0..classes - 1."""
    noise = np.random.default_rng(seed).normal(size=(classes, *shape))
    return ndimage.gaussian_filter(noise, (0, sigma, sigma)).argmax(axis=0).astype(np.uint8)


def shown(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == NODATA, 0, mask)


def test_the_fake_is_a_level_source():
    source: LevelSource = one_class_source(np.ones((2, 2)))
    assert source.read_levels(Window(0, 0, 2, 1)).shape == (1, 1, 2)


@given(mask=MASKS, block_size=st.integers(1, 13), connectivity=CONNECTIVITY)
@example(mask=HOLE_IN_HOLE, block_size=3, connectivity=4)
@example(mask=SELF_TOUCH_ACROSS_BLOCKS, block_size=2, connectivity=4)
def test_burning_the_polygons_gives_the_mask(mask: np.ndarray, block_size: int, connectivity: int):
    spec = PolygonSpec(connectivity=connectivity)
    batch = polygons_of(classes_source(mask), spec, block_size=block_size)
    assert shapely.is_valid(batch.geometry).all()
    assert (burnt(batch, mask.shape) == shown(mask)).all()
    assert (shapely.area(batch.geometry) == batch.pixel_count).all()


@given(mask=MASKS, block_size=st.integers(1, 5), connectivity=CONNECTIVITY)
@example(mask=HOLE_IN_HOLE, block_size=2, connectivity=8)
@example(mask=SELF_TOUCH_ACROSS_BLOCKS, block_size=2, connectivity=4)
def test_polygons_do_not_depend_on_the_block_size(mask: np.ndarray, block_size: int, connectivity: int):
    spec = PolygonSpec(connectivity=connectivity)
    whole = polygons_of(classes_source(mask), spec)
    assert as_set(polygons_of(classes_source(mask), spec, block_size=block_size)) == as_set(whole)


@given(mask=MASKS, block_size=st.integers(1, 13), connectivity=CONNECTIVITY)
def test_there_are_as_many_polygons_as_components(mask: np.ndarray, block_size: int, connectivity: int):
    batch = polygons_of(classes_source(mask), PolygonSpec(connectivity=connectivity), block_size=block_size)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    for value in (1, 2, 3):
        assert (batch.class_value == value).sum() == ndimage.label(mask == value, structure)[1]


@given(mask=MASKS, block_size=st.integers(1, 13))
def test_4_connected_polygons_are_those_of_gdal(mask: np.ndarray, block_size: int):
    found = [(shapely.geometry.shape(s), v) for s, v in shapes(mask, mask=shown(mask) > 0, connectivity=4)]
    expected = sorted((shapely.normalize(shape).wkt, int(value)) for shape, value in found)
    batch = polygons_of(classes_source(mask), block_size=block_size)
    text = [geometry.wkt for geometry in shapely.normalize(batch.geometry)]
    assert sorted(zip(text, batch.class_value.tolist(), strict=True)) == expected


@pytest.mark.parametrize("block_size", range(1, 9))
@pytest.mark.parametrize("connectivity", [4, 8])
def test_holes_in_holes_are_whole_wherever_they_are_cut(block_size: int, connectivity: int):
    spec = PolygonSpec(connectivity=connectivity)
    for shift in range(block_size):
        mask = np.pad(HOLE_IN_HOLE, ((shift, 0), (shift // 2, 0)))
        batch = polygons_of(classes_source(mask), spec, block_size=block_size)
        assert sorted(batch.pixel_count.tolist()) == [8, 24]
        assert shapely.get_num_interior_rings(shapely.get_parts(batch.geometry)).tolist() == [1, 1]
        assert (burnt(batch, mask.shape) == mask).all()


@pytest.mark.parametrize("block_size", [64, 7])
def test_a_polygon_carries_the_sums_of_its_pixels(block_size: int):
    mask = natural((40, 50))
    source = classes_source(mask)
    level = source.read_levels(source.grid.window).max(axis=0)
    batch = polygons_of(source, block_size=block_size)
    for row in range(len(batch)):
        pixels = burnt(joined([batch]), mask.shape) > 0
        pixels &= shapely.contains_xy(batch.geometry[row], *np.meshgrid(np.arange(50) + 0.5, np.arange(40) + 0.5))
        assert batch.pixel_count[row] == pixels.sum()
        assert batch.mean_probability[row] == level[pixels].sum(dtype=np.int64) / (254 * pixels.sum())
        assert batch.max_probability[row] == level[pixels].max() / 254


@given(block_size=st.integers(1, 9), threshold=st.floats(0.01, 1.0))
def test_independent_classes_may_overlap_and_are_cut_at_the_threshold(block_size: int, threshold: float):
    levels = np.random.default_rng(1).integers(0, 65535, (3, 9, 8)).astype(np.uint16)
    levels[:, 4, 2:5] = INVALID
    card = ModelCard(bands=("red",), classes=("a", "b", "c"))
    spec = PolygonSpec(threshold=threshold)
    batch = polygons_of(FakeLevels(levels, card, top=65534), spec, block_size=block_size)
    for index, value in enumerate(card.mask_values):
        of_class = joined([batch])
        chosen = batch.class_value == value
        of_class = type(batch)(**{name: getattr(batch, name)[chosen] for name in batch.__dataclass_fields__})
        expected = (levels[index] / 65534 >= threshold) & (levels[index] != INVALID)
        assert ((burnt(of_class, (9, 8)) == value) == expected).all()


def test_nodata_is_never_in_a_polygon():
    mask = np.ones((20, 20), np.uint8)
    mask[5:9, 3:17] = NODATA
    batch = polygons_of(one_class_source(mask), block_size=6)
    assert batch.pixel_count.tolist() == [400 - 56]


def test_a_mosaic_without_a_class_gives_no_batch():
    assert list(vectorize(one_class_source(np.zeros((5, 5))), PolygonSpec())) == []


def test_polygons_come_in_the_order_of_their_first_pixel():
    mask = natural((60, 60))
    first = [polygon.exterior.coords[0] for polygon in polygons_of(classes_source(mask)).geometry]
    assert [(y, x) for x, y in first] == sorted((y, x) for x, y in first)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_order_does_not_depend_on_the_workers(workers: int):
    source = classes_source(natural((60, 60)))
    one = polygons_of(source, block_size=16, workers=1)
    many = polygons_of(source, block_size=16, workers=workers)
    assert shapely.to_wkt(one.geometry).tolist() == shapely.to_wkt(many.geometry).tolist()


def test_each_pixel_is_read_once():
    source = classes_source(natural((45, 33)))
    polygons_of(source, PolygonSpec(connectivity=8, fill_holes_m2=3), block_size=10)
    reads = np.zeros((45, 33), int)
    for window in source.read:
        reads[window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width] += 1
    assert (reads == 1).all()


def test_at_most_two_block_rows_are_read_before_the_first_polygon():
    source = one_class_source(np.tile(np.eye(8, dtype=np.uint8), (20, 1)))
    usual = threading.active_count()
    batches = vectorize(source, PolygonSpec(), block_size=8)
    assert source.read == []
    next(batches)
    assert max(window.row_off for window in source.read) <= 16
    batches.close()
    assert threading.active_count() <= usual


def test_an_open_polygon_does_not_carry_the_seams_behind_it():
    joiner = SeamJoiner(8, TracingRule())
    ones = Classification(mask=np.ones((8, 8), np.uint8), level=np.ones((8, 8), np.uint16))
    for row in range(20):
        blocks = []
        for col in range(3):
            seams = Seams(top=row > 0, bottom=True, left=col > 0, right=col < 2)
            blocks.append(trace_block(ones, seams, (8 * row, 8 * col), TracingRule()))
        assert len(joiner.add_row(blocks, is_last=False).table) == 0
        assert len(joiner.rings.xy) == 2 + 25
    assert joiner.table.count.tolist() == [20 * 3 * 64]


def test_nothing_is_left_to_compile_when_the_mosaic_is_there():
    script = """
        import sys
        sys.path.insert(0, "tests")
        import numpy as np
        from support.fake_mosaic import one_class_source
        from pipeline.polygons.tracing import outlines as tracing
        from pipeline.polygons.tracing import rings as tracing_rings
        from pipeline.polygons.tracing import join as tracing_seams
        from pipeline.polygons.tracing import kernels as tracing_sweeps
        from pipeline.polygons.tracing import components as labelling
        from pipeline.polygons.shaping import PolygonSpec
        from pipeline.polygons.stream import compile_kernels, vectorize

        def compiled():
            modules = (tracing, tracing_rings, tracing_seams, tracing_sweeps, labelling)
            return sum(len(getattr(each, "signatures", ())) for module in modules for each in vars(module).values())

        source = one_class_source(np.random.default_rng(0).random((40, 40)) < 0.6)
        compile_kernels(source.grid, PolygonSpec(), "uint16")
        before = compiled()
        count = sum(len(batch) for batch in vectorize(source, PolygonSpec(), block_size=16))
        print(before > 5, compiled() - before, count > 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.stdout.split() == ["True", "0", "True"], done.stderr


def test_large_results_come_in_several_batches(monkeypatch: pytest.MonkeyPatch):
    source = classes_source(natural((60, 60)))
    whole = polygons_of(source)
    monkeypatch.setattr(vectorize_module, "BATCH_VERTICES", 50)
    batches = list(vectorize(source, PolygonSpec()))
    assert len(batches) > 10
    assert as_set(joined(batches)) == as_set(whole)


def test_an_error_while_reading_is_the_callers():
    class Damaged(FakeLevels):
        def read_levels(self, window: Window) -> np.ndarray:
            if window.row_off >= 20:
                raise OSError("damaged")
            return super().read_levels(window)

    source = Damaged(np.zeros((1, 40, 40), np.uint16), ModelCard(bands=("red",), classes=("roof",)))
    with pytest.raises(OSError, match="damaged"):
        list(vectorize(source, PolygonSpec(), block_size=10))


def test_settings_are_refused_before_anything_is_read():
    source = classes_source(np.ones((3, 3)))
    with pytest.raises(SettingsError, match="block_size"):
        vectorize(source, PolygonSpec(), block_size=0)
    with pytest.raises(SettingsError, match="exclusive"):
        vectorize(source, PolygonSpec(threshold=0.5))
    assert source.read == []


# Holes


def filled_by_brute_force(mask: np.ndarray, max_pixels: int) -> np.ndarray:
    """Components of no class with one neighbour get its class; `most` is their largest size in pixels."""
    numbers, n = np.zeros(mask.shape, int), 0
    for value in (1, 2, 3):
        found, count = ndimage.label(mask == value)
        numbers[found > 0], n = found[found > 0] + n, n + count
    numbers[mask == NODATA] = -1
    around = np.pad(numbers, 1, constant_values=-1)
    filled = mask.copy()
    empty, count = ndimage.label(mask == 0)
    for number in range(1, count + 1):
        rows, cols = np.nonzero(empty == number)
        steps = ((0, 1), (2, 1), (1, 0), (1, 2))
        neighbours = {int(n) for r, c in steps for n in around[rows + r, cols + c]} - {0}
        if len(rows) <= max_pixels and len(neighbours) == 1 and neighbours != {-1}:
            filled[empty == number] = mask[numbers == neighbours.pop()][0]
    return filled


@given(
    mask=arrays(np.uint8, SIZES, elements=st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2, NODATA])),
    max_pixels=st.sampled_from([1, 2, 5, 50]),
    block_size=st.integers(1, 13),
    connectivity=CONNECTIVITY,
)
@example(mask=HOLE_IN_HOLE, max_pixels=50, block_size=3, connectivity=4)
def test_only_holes_full_of_valid_none_are_filled(
    mask: np.ndarray, max_pixels: int, block_size: int, connectivity: int
):
    spec = PolygonSpec(fill_holes_m2=1.05 * max_pixels, connectivity=connectivity)
    batch = polygons_of(classes_source(mask), spec, block_size=block_size)
    assert shapely.is_valid(batch.geometry).all()
    assert (burnt(batch, mask.shape) == shown(filled_by_brute_force(mask, max_pixels))).all()
    assert batch.pixel_count.sum() == (shown(mask) > 0).sum()
    assert as_set(batch) == as_set(polygons_of(classes_source(mask), spec))


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 2048])
def test_a_hole_is_measured_where_it_lies(block_size: int):
    """Near a pole pixels in degrees are small: as many as the middle of the scene allows are filled there."""
    mask = np.ones((170, 12), np.uint8)
    mask[4:6, 4:8] = mask[84:86, 4:8] = 0
    source = classes_source(mask, crs="EPSG:4326", transform=Affine(1, 0, 10, 0, -1, 85))
    rule = HoleFilter.of(source.grid, 8.5 / 4 * source.grid.resolution_m**2)
    assert rule.max_pixels == 8
    batch = polygons_of(source, PolygonSpec(fill_holes_m2=rule.limit_m2), block_size=block_size)
    mask[4:6, 4:8] = 1
    assert (burnt(batch, mask.shape) == mask).all()


# Simplifying


def simplified(mask: np.ndarray, simplify_m: float, monkeypatch: pytest.MonkeyPatch, **options: float):
    monkeypatch.setattr(vectorize_module, "SIMPLIFY_BLOCK", options.pop("block", 2048))
    return polygons_of(classes_source(mask), PolygonSpec(simplify_m=simplify_m, **options), block_size=5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [2048, 9])
@pytest.mark.parametrize("simplify_m", [0.6, 1.5, 8.0])
def test_simplified_polygons_are_valid_and_never_overlap(
    seed: int, block: int, simplify_m: float, monkeypatch: pytest.MonkeyPatch
):
    mask = natural((40, 50), sigma=(0.0, 0.8, 1.5)[seed % 3], seed=seed)
    exact = polygons_of(classes_source(mask))
    batch = simplified(mask, simplify_m, monkeypatch, block=block)
    assert len(batch) == len(exact)
    assert shapely.is_valid(batch.geometry).all()
    left, right = shapely.STRtree(batch.geometry).query(batch.geometry, "intersects")
    pairs = left < right
    overlaps = shapely.intersection(batch.geometry[left[pairs]], batch.geometry[right[pairs]])
    assert shapely.area(overlaps).max(initial=0) < 1e-9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [2048, 9])
def test_simplified_neighbours_leave_no_gap(seed: int, block: int, monkeypatch: pytest.MonkeyPatch):
    batch = simplified(1 + natural((40, 50), seed=seed), 1.5, monkeypatch, block=block)
    union = shapely.union_all(batch.geometry)
    assert sum(len(part.interiors) for part in shapely.get_parts(union)) == 0
    assert shapely.area(batch.geometry).sum() == pytest.approx(union.area)
    if block == 2048:
        assert shapely.coverage_is_valid(batch.geometry)


def test_simplified_borders_stay_within_the_tolerance(monkeypatch: pytest.MonkeyPatch):
    mask = natural((60, 60), sigma=3)
    exact = shapely.union_all(shapely.boundary(polygons_of(classes_source(mask)).geometry))
    for tolerance in (0.5, 1.0, 3.0):
        batch = simplified(mask, tolerance, monkeypatch)
        border = shapely.union_all(shapely.boundary(batch.geometry))
        assert shapely.hausdorff_distance(exact, border, densify=0.1) <= tolerance * 1.001


@pytest.mark.parametrize(
    ("crs", "transform", "pixel_m"),
    [
        ("EPSG:32633", Affine(0.5, 0, 500_000, 0, -1, 5_000_000), (0.5, 1.0)),
        ("EPSG:32633", Affine(1, 0, 500_000, 0, -0.5, 5_000_000), (1.0, 0.5)),
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 60), (0.558, 1.114)),
    ],
)
def test_simplified_borders_stay_within_the_tolerance_on_the_ground_where_pixels_are_not_square(
    crs: str, transform: Affine, pixel_m: tuple[float, float]
):
    source = classes_source(natural((60, 60), sigma=3), crs=crs, transform=transform)
    for tolerance_m in (0.5, 1.0, 3.0):
        exact, border = (
            shapely.transform(
                shapely.union_all(shapely.boundary(polygons_of(source, spec).geometry)), lambda xy: xy * pixel_m
            )
            for spec in (PolygonSpec(), PolygonSpec(simplify_m=tolerance_m))
        )
        distance_m = shapely.hausdorff_distance(exact, border, densify=0.1)
        assert tolerance_m / 2 < distance_m <= tolerance_m * 1.005


def test_the_smallest_polygons_keep_their_area(monkeypatch: pytest.MonkeyPatch):
    mask = np.zeros((20, 20), np.uint8)
    mask[1, 1] = mask[4:6, 4:9] = mask[10, 3:15] = 1
    batch = simplified(mask, 50, monkeypatch)
    assert shapely.area(batch.geometry).tolist() == [1, 10, 12]


def test_a_diagonal_border_becomes_one_line(monkeypatch: pytest.MonkeyPatch):
    mask = np.tri(30, 30, dtype=np.uint8)
    exact, batch = polygons_of(classes_source(mask)), simplified(mask, 0.8, monkeypatch)
    assert shapely.get_num_coordinates(exact.geometry[0]) > 60
    assert shapely.get_num_coordinates(batch.geometry[0]) < 8


def test_simplifying_does_not_depend_on_block_size_or_workers():
    source = classes_source(natural((50, 50)))
    spec = PolygonSpec(simplify_m=1.5)
    assert as_set(polygons_of(source, spec, block_size=7, workers=3)) == as_set(polygons_of(source, spec))


@pytest.mark.parametrize("block", [2048, 6])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_holes_are_filled_in_simplified_polygons_too(block: int, connectivity: int, monkeypatch: pytest.MonkeyPatch):
    mask = (np.random.default_rng(2).random((30, 30)) < 0.75).astype(np.uint8)
    spec = {"fill_holes_m2": 3.2, "connectivity": connectivity}
    exact = polygons_of(classes_source(mask), PolygonSpec(**spec))
    batch = simplified(mask, 1.5, monkeypatch, block=block, **spec)
    assert shapely.is_valid(batch.geometry).all()
    holes = [shapely.get_num_interior_rings(shapely.get_parts(each.geometry)).sum() for each in (exact, batch)]
    assert holes[0] == holes[1] > 0


def test_the_tolerance_is_true_metres_in_degrees_too():
    source = one_class_source(np.ones((10, 10)), crs="EPSG:4326", transform=Affine(1e-5, 0, 10, 0, -1e-5, 60))
    across_m, down_m = pixel_sides_m(source.grid)
    assert across_m == pytest.approx(0.558, rel=1e-3)
    assert down_m == pytest.approx(1.114, rel=1e-3)


@given(mask=MASKS, simplify_m=st.sampled_from([0.8, 2.0, 9.0]), block=st.sampled_from([3, 5, 2048]))
def test_any_mask_can_be_simplified(mask: np.ndarray, simplify_m: float, block: int):
    assume(shown(mask).any())
    with pytest.MonkeyPatch.context() as monkeypatch:
        batch = simplified(mask, simplify_m, monkeypatch, block=block)
    exact = polygons_of(classes_source(mask))
    assert shapely.is_valid(batch.geometry).all()
    holes = [sorted(shapely.get_num_interior_rings(each.geometry).tolist()) for each in (exact, batch)]
    assert holes[0] == holes[1]
