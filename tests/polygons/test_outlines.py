from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import shapes
from scipy import ndimage
from support.fake_mosaic import one_class_source, polygons_of

from pipeline.mosaic import Classification
from pipeline.polygons.shaping import PolygonSpec
from pipeline.polygons.tracing.components import NO_COMPONENT, union_find
from pipeline.polygons.tracing.corners import INITIAL_CAPACITY
from pipeline.polygons.tracing.outlines import BlockOutlines, Rings, Seams, trace_outlines

ROOT = Path(__file__).parents[2]


def all_patterns(side: int) -> np.ndarray:
    """Every binary pattern of `side` x `side` pixels once, each with an empty row above and column before it."""
    bits = side * side
    patterns = (np.arange(1 << bits)[:, None] >> np.arange(bits)) & 1
    cells = np.zeros((1 << bits, side + 1, side + 1), np.uint8)
    cells[:, 1:, 1:] = patterns.reshape(-1, side, side)
    across = 1 << (bits // 2)
    return cells.reshape(-1, across, side + 1, side + 1).swapaxes(1, 2).reshape(-1, across * (side + 1))


@cache
def outlines_by_rasterio(side: int) -> list[str]:
    """Those of all patterns of a side; seconds for one of four."""
    return by_rasterio(all_patterns(side))


def by_rasterio(mask: np.ndarray) -> list[str]:
    """The polygons of another implementation, as sorted text."""
    found = [shapely.geometry.shape(shape) for shape, _ in shapes(mask, mask=mask > 0, connectivity=4)]
    return sorted(shapely.to_wkt(shapely.normalize(np.array(found, object))).tolist())


@pytest.mark.parametrize(
    ("side", "block_size"),
    [
        (3, 4096),
        (3, 3),
        (3, 7),
        (4, 4096),
        pytest.param(4, 7, marks=pytest.mark.slow),
    ],
)
def test_every_small_pattern_has_the_outline_that_gdal_finds(side: int, block_size: int):
    geometry = polygons_of(one_class_source(all_patterns(side)), block_size=block_size).geometry
    assert shapely.is_valid(geometry).all()
    assert sorted(shapely.to_wkt(shapely.normalize(geometry)).tolist()) == outlines_by_rasterio(side)


@pytest.mark.slow
def test_every_pattern_of_four_pixels_can_lie_over_the_corner_of_four_blocks():
    """Each has a place of 7 px, the corner of blocks of 7 px in it; it is cut after 1, 2 or 3 rows and columns."""
    bits = (np.arange(1 << 16)[:, None] >> np.arange(16)) & 1
    places = np.zeros((256, 256, 7, 7), np.uint8)
    for row, col in itertools.product(range(3), range(3)):
        shown = bits.reshape(256, 256, 4, 4)[row::3, col::3]
        places[row::3, col::3, row : row + 4, col : col + 4] = shown
    mask = np.pad(places.swapaxes(1, 2).reshape(256 * 7, 256 * 7), ((4, 3), (4, 3)))
    geometry = polygons_of(one_class_source(mask), block_size=7).geometry
    assert shapely.is_valid(geometry).all()
    assert sorted(shapely.to_wkt(shapely.normalize(geometry)).tolist()) == by_rasterio(mask)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("col", range(4))
def test_every_small_pattern_can_be_cut_anywhere(row: int, col: int):
    """Each pattern of 3 x 3 px has a place of 7 px, and blocks of 7 px meet beside it or in it."""
    patterns = np.zeros((512, 7, 7), np.uint8)
    patterns[:, row : row + 3, col : col + 3] = ((np.arange(512)[:, None] >> np.arange(9)) & 1).reshape(-1, 3, 3)
    mask = patterns.reshape(16, 32, 7, 7).swapaxes(1, 2).reshape(16 * 7, 32 * 7)
    cut = np.roll(mask, (-2, -2), axis=(0, 1))
    cut[-2:] = cut[:, -2:] = 0
    geometry = polygons_of(one_class_source(cut), block_size=7).geometry
    assert shapely.is_valid(geometry).all()
    assert sorted(shapely.to_wkt(shapely.normalize(geometry)).tolist()) == by_rasterio(cut)


@pytest.mark.parametrize(
    ("side", "block_size"),
    [
        (3, 4096),
        (3, 5),
        pytest.param(4, 4096, marks=pytest.mark.slow),
        pytest.param(4, 7, marks=pytest.mark.slow),
    ],
)
def test_every_small_pattern_has_the_features_of_its_8_connected_pixels(side: int, block_size: int):
    mask = all_patterns(side)
    batch = polygons_of(one_class_source(mask), PolygonSpec(connectivity=8), block_size=block_size)
    assert shapely.is_valid(batch.geometry).all()
    parts = shapely.normalize(shapely.get_parts(batch.geometry))
    assert sorted(shapely.to_wkt(parts).tolist()) == outlines_by_rasterio(side)
    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    inside = shapely.get_coordinates(shapely.point_on_surface(shapely.get_parts(batch.geometry))).astype(int)
    start = np.cumsum([0, *shapely.get_num_geometries(batch.geometry)])
    number = numbers[inside[:, 1], inside[:, 0]]
    assert (number == np.repeat(number[start[:-1]], np.diff(start))).all()
    assert sorted(number[start[:-1]].tolist()) == list(range(1, count + 1))
    assert batch.pixel_count.tolist() == np.bincount(numbers.ravel())[number[start[:-1]]].tolist()


def traced(mask: np.ndarray, seams: Seams | None = None, **options: object) -> BlockOutlines:
    return trace_outlines(Classification(mask=mask, level=mask.astype(np.uint16)), seams or Seams(), **options)


def rings_of(mask: np.ndarray, seams: Seams | None = None) -> Rings:
    found = traced(mask, seams)
    return found.rings(np.arange(len(found.table)))


def test_a_ring_turns_left_where_its_component_touches_itself():
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    rings = rings_of(mask)
    assert rings.owner.tolist() == [0, 0]
    assert rings.xy.tolist() == [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3], [1, 1], [1, 2], [2, 2], [2, 1]]


def test_seams_have_a_vertex_at_every_pixel_corner():
    mask = np.ones((3, 3), np.uint8)
    assert len(rings_of(mask).xy) == 4
    assert len(rings_of(mask, Seams(right=True)).xy) == 6
    assert rings_of(mask, Seams(right=True)).joinable.sum() == 4
    assert len(rings_of(mask, Seams(top=True, bottom=True, left=True, right=True)).xy) == 12


@given(
    mask=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255])),
    kind=st.sampled_from([np.uint8, np.uint16]),
)
def test_components_are_those_of_scipy_with_their_sums(mask: np.ndarray, kind: type[np.unsignedinteger]):
    level = np.arange(mask.size).reshape(mask.shape).astype(kind)
    found = trace_outlines(Classification(mask=mask, level=level), Seams(), origin=(100, 200), with_none=True)
    labels, table = found.labels, found.table
    assert ((labels == 0) == (mask == 255)).all()
    expected = sum(ndimage.label(mask == value)[1] for value in (0, 1, 2))
    assert labels.max(initial=0) == len(table) == expected
    for row in range(expected):
        pixels = labels == row + 1
        assert set(mask[pixels]) == {table.value[row]}
        assert table.count[row] == pixels.sum()
        assert table.total[row] == level[pixels].sum(dtype=int)
        assert table.peak[row] == level[pixels].max()
        first = np.argwhere(pixels)[0] + (100, 200)
        assert table.first[row] == (first[0] << 32) + first[1]
    sides = {"top": labels[0], "right": labels[:, -1], "bottom": labels[-1], "left": labels[:, 0]}
    for side, line in sides.items():
        assert found.lines[side].tolist() == np.where(line > 0, line - 1, NO_COMPONENT).tolist()


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 1, 2, 255])))
def test_every_component_has_one_shell_and_its_outline_holds_its_pixels(mask: np.ndarray):
    found = traced(mask)
    assert found.index.is_shell.sum() == len(found.table)
    rings = found.rings(np.arange(len(found.table)))
    x, y = rings.xy.astype(int).T
    following = np.arange(1, len(x) + 1)
    following[rings.start[1:] - 1] = rings.start[:-1]
    twice = x * y[following] - x[following] * y
    ring = np.repeat(np.arange(len(rings)), rings.sizes)
    area = np.bincount(rings.owner[ring], weights=twice, minlength=len(found.table)) / 2
    assert area.tolist() == found.table.count.tolist()


def test_contacts_are_of_one_class():
    mask = np.array([[1, 0, 2], [0, 1, 0], [1, 0, 2]], np.uint8)
    found = traced(mask)
    feature = union_find(len(found.table), found.contacts)
    assert len(found.table) == 5
    assert len(set(feature)) == 3


def test_the_vertex_buffer_grows():
    mask = (np.indices((300, 310)).sum(axis=0) % 2).astype(np.uint8)
    found = traced(mask)
    assert len(found.table) == mask.sum()
    assert len(found.corners.xy) == 4 * mask.sum() > INITIAL_CAPACITY


def test_compiled_functions_call_only_those_of_their_own_file():
    """Numba keeps machine code until the file changes; it does not see that a function of another file did."""
    strangers = []
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        kernels = {name for name, node in functions.items() if "compiled" in map(ast.unparse, node.decorator_list)}
        imported = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pipeline")
            for alias in node.names
        }
        for name in kernels:
            calls = {ast.unparse(node.func) for node in ast.walk(functions[name]) if isinstance(node, ast.Call)}
            strangers += [f"{path.name}: {name} calls {call}" for call in calls & imported]
    assert strangers == []


def test_kernels_work_where_nothing_can_be_cached(tmp_path: Path):
    script = (
        "import warnings; warnings.simplefilter('error')\n"
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np; from pipeline.polygons.tracing.components import union_find\n"
        "print(union_find(3, np.array([[0, 2]])).tolist())"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert done.stdout.strip() == "[0, 1, 0]", done.stderr
    assert list(tmp_path.iterdir()) == []
