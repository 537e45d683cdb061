from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from fake_levels import one_class_source, polygons_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import shapes

from pipeline.labelling import corner_pairs, label, unite
from pipeline.tracing import Seams, trace

ROOT = Path(__file__).parents[1]


def all_patterns(side: int) -> np.ndarray:
    """Every binary pattern of `side` x `side` pixels once, each with an empty row above and column before it."""
    bits = side * side
    patterns = (np.arange(1 << bits)[:, None] >> np.arange(bits)) & 1
    cells = np.zeros((1 << bits, side + 1, side + 1), np.uint8)
    cells[:, 1:, 1:] = patterns.reshape(-1, side, side)
    across = 1 << (bits // 2)
    return cells.reshape(-1, across, side + 1, side + 1).swapaxes(1, 2).reshape(-1, across * (side + 1))


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
        pytest.param(4, 3, marks=pytest.mark.slow),
        pytest.param(4, 7, marks=pytest.mark.slow),
    ],
)
def test_every_small_pattern_has_the_outline_that_gdal_finds(side: int, block_size: int):
    mask = all_patterns(side)
    geometry = polygons_of(one_class_source(mask), block_size=block_size).geometry
    assert shapely.is_valid(geometry).all()
    assert sorted(shapely.to_wkt(shapely.normalize(geometry)).tolist()) == by_rasterio(mask)


def test_a_ring_turns_left_where_its_component_touches_itself():
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    rings = trace(label(mask, mask.astype(np.uint16)), Seams()).arranged()
    assert rings.owner.tolist() == [0, 0]
    assert rings.xy.tolist() == [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3], [1, 1], [1, 2], [2, 2], [2, 1]]


def test_seams_have_a_vertex_at_every_pixel_corner():
    mask = np.ones((3, 3), np.uint8)
    labels = label(mask, mask.astype(np.uint16))
    assert len(trace(labels, Seams()).xy) == 4
    assert len(trace(labels, Seams(right=True)).xy) == 6
    assert trace(labels, Seams(right=True)).loose.sum() == 4
    assert len(trace(labels, Seams(top=True, bottom=True, left=True, right=True)).xy) == 12


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255])))
def test_components_are_those_of_scipy_with_their_sums(mask: np.ndarray):
    from scipy import ndimage

    level = np.arange(mask.size, dtype=np.uint16).reshape(mask.shape)
    labels = label(mask, level, origin=(100, 200), with_none=True)
    inside = labels.inside
    assert ((inside == 0) == (mask == 255)).all()
    expected = sum(ndimage.label(mask == value)[1] for value in (0, 1, 2))
    assert inside.max(initial=0) == len(labels.table) == expected
    for row in range(expected):
        pixels = inside == row + 1
        assert set(mask[pixels]) == {labels.table.value[row]}
        assert labels.table.count[row] == pixels.sum()
        assert labels.table.total[row] == level[pixels].sum()
        assert labels.table.peak[row] == level[pixels].max()
        first = np.argwhere(pixels)[0] + (100, 200)
        assert labels.table.first[row] == (first[0] << 32) + first[1]


def test_corner_pairs_are_of_one_class():
    mask = np.array([[1, 0, 2], [0, 1, 0], [1, 0, 2]], np.uint8)
    labels = label(mask, mask.astype(np.uint16))
    feature = unite(len(labels.table), corner_pairs(labels))
    assert len(labels.table) == 5
    assert len(set(feature)) == 3


def test_kernels_work_where_nothing_can_be_cached(tmp_path: Path):
    script = (
        "import warnings; warnings.simplefilter('error')\n"
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np; from pipeline.labelling import unite\n"
        "print(unite(3, np.array([[0, 2]])).tolist())"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert done.stdout.strip() == "[0, 1, 0]", done.stderr
    assert list(tmp_path.iterdir()) == []
