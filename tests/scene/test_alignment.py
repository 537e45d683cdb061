"""Files of one scene: which grid they share, which overlap, and how old they are together."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import MakeScene

from pipeline.errors import SceneError
from pipeline.scene.bands import BandFile
from pipeline.scene.describe import Scene, describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.scene.resample import AxisMapping, plan_taps
from pipeline.scene.spec import SceneSource

TEN = Affine(10, 0, 600_000, 0, -10, 5_300_000)


def described(*paths: Path) -> Scene:
    files = tuple(
        BandFile(location=str(path), names=(path.stem,), nodata=(None,), scales=(None,), offsets=(None,))
        for path in paths
    )
    return describe_scene(paths[0], source=SceneSource(files=files))


def files(make_scene: MakeScene, **transforms: Affine) -> list[Path]:
    return [make_scene(bands=1, name=f"{name}.tif", transform=place) for name, place in transforms.items()]


@pytest.mark.parametrize("shift", [(51, 0), (-51, 0), (0, 41), (0, -41), (50, 0), (0, -40)])
def test_files_on_any_side_of_one_another_make_no_scene(make_scene: MakeScene, shift: tuple[int, int]) -> None:
    """They are 50 px wide and 40 px high; files that only touch do not overlap."""
    paths = files(make_scene, red=TEN, blue=TEN @ Affine.translation(*shift))
    for order in (paths, paths[::-1]):
        with pytest.raises(SceneError, match="does not overlap"):
            described(*order)


def test_files_that_share_a_pixel_make_a_scene(make_scene: MakeScene) -> None:
    for k, shift in enumerate([(49, 0), (-49, 0), (0, 39), (0, -39)]):
        paths = files(make_scene, **{f"red{k}": TEN, f"blue{k}": TEN @ Affine.translation(*shift)})
        assert described(*paths).bands == (f"red{k}", f"blue{k}")


@pytest.mark.parametrize("turned", [Affine.scale(1, -1), Affine.scale(-1, 1), Affine.rotation(1)])
def test_files_whose_rows_run_in_different_directions_make_no_scene(make_scene: MakeScene, turned: Affine) -> None:
    with pytest.raises(SceneError, match="run in different directions"):
        described(*files(make_scene, red=TEN, blue=TEN @ turned))


def test_of_files_of_nearly_one_size_the_first_gives_the_grid(make_scene: MakeScene) -> None:
    slightly = TEN @ Affine.scale(0.9999)
    assert described(*files(make_scene, red=TEN, blue=slightly)).grid.transform == TEN
    finer = TEN @ Affine.scale(0.9)
    assert described(*files(make_scene, red1=TEN, blue1=finer)).grid.transform == finer


def test_a_scene_is_as_new_as_its_newest_file_if_all_are_known(make_scene: MakeScene) -> None:
    paths = files(make_scene, red=TEN, blue=TEN)
    for path, time in zip(paths, (5, 3), strict=True):
        os.utime(path, ns=(time * 10**9, time * 10**9))
    scene = described(*paths)
    assert scene.modified_ns == 5 * 10**9
    remote = Scene(**{**vars_of(scene), "files": (scene.files[0], as_remote(scene))})
    assert remote.modified_ns is None


def vars_of(scene: Scene) -> dict[str, object]:
    return {name: getattr(scene, name) for name in scene.__dataclass_fields__}


def as_remote(scene: Scene) -> object:
    other = scene.files[1]
    facts = {name: getattr(other, name) for name in other.__dataclass_fields__}
    return type(other)(**{**facts, "modified_ns": None})


def test_positions_that_only_touch_the_stored_pixels_hold_nothing_of_them() -> None:
    mapping = AxisMapping(stored=4, outputs=4, first=Fraction(-2), last=Fraction(6))
    assert plan_taps(mapping, 0, 4).inside.tolist() == [False, True, True, False]


@pytest.mark.parametrize("step", [1.5, 2, 3.7])
def test_what_is_no_number_in_a_coarser_file_is_no_data_of_the_scene(make_scene: MakeScene, step: float) -> None:
    """Whether its pixels are repeated or averaged."""
    coarse = np.ones((40, 50), np.float32)
    coarse[:, :10] = np.nan
    paths = [
        make_scene(np.ones((40, 50), np.float32), name="red.tif", transform=TEN),
        make_scene(coarse, name="blue.tif", transform=TEN @ Affine.scale(step)),
    ]
    scene = described(*paths)
    with SceneReader(scene) as reader:
        pixels, valid = reader.read(scene.grid.window)
    border = 10 * step
    columns = np.arange(50)
    assert not valid[:, columns + 1 <= border].any()
    assert valid[:, columns >= border].all()
    assert np.isfinite(pixels[:, valid]).all()
