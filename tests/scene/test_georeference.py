"""Where a file lies: transforms that are one by chance, sidecars that contradict, and sizes that nearly agree."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from affine import Affine
from conftest import MakeScene
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

import pipeline.scene.file
from pipeline.errors import SceneError
from pipeline.model.card import ModelCard
from pipeline.scene.describe import describe_scene
from pipeline.scene.georeference import file_grid
from pipeline.scene.spec import ReadingSpec
from pipeline.storage import resolve_location


@pytest.mark.parametrize("placed", [True, False])
def test_a_transform_without_an_origin_is_a_place_unless_gdal_says_that_it_made_it_up(placed: bool) -> None:
    """Some drivers show such a transform of files that lie nowhere."""

    class Reopened:
        def close(self) -> None:
            if not placed:
                warnings.warn("no geotransform", NotGeoreferencedWarning, stacklevel=1)

    flipped = Affine(1, 0, 0, 0, -1, 0)
    dataset: Any = SimpleNamespace(
        transform=flipped, crs=CRS.from_epsg(32633), height=3, width=4, files=[], driver="PNG"
    )
    reopen: Any = Reopened
    grid = file_grid(dataset, ReadingSpec(), resolve_location("a.png"), reopen=reopen, georeferenced=False)
    assert grid.transform == (flipped if placed else Affine.identity())
    assert (grid.crs.to_epsg() == 32633) is placed


def test_only_a_transform_without_an_origin_costs_a_second_look(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    usual = pipeline.scene.file._open_source

    def counted(place: object, *args: Any) -> object:
        opened.append(place)
        return usual(place, *args)  # type: ignore[arg-type]

    paths = make_scene(), make_scene(transform=Affine(0.5, 0, 0, 0, -0.5, 0))
    monkeypatch.setattr("pipeline.scene.file._open_source", counted)
    counts = []
    for path in paths:
        opened.clear()
        describe_scene(path)
        counts.append(len(opened))
    assert counts[1] == counts[0] + 1


def write_sidecar(path: Path, transform: Affine) -> None:
    numbers = ", ".join(f"{value:.16e}" for value in transform.to_gdal())
    path.with_name(f"{path.name}.aux.xml").write_text(
        f"<PAMDataset><GeoTransform>{numbers}</GeoTransform></PAMDataset>"
    )


@pytest.mark.parametrize(("shift", "refused"), [(0.0, False), (1e-6, False), (1.0, True)])
def test_a_sidecar_may_repeat_the_place_of_a_file_and_not_move_it(
    make_scene: MakeScene, shift: float, refused: bool
) -> None:
    path = make_scene()
    write_sidecar(path, Affine(0.5, 0, 500_000 + shift, 0, -0.5, 5_400_000))
    if refused:
        with pytest.raises(SceneError, match=r"contradicts its \.aux\.xml sidecar"):
            describe_scene(path)
    else:
        describe_scene(path)


@pytest.mark.parametrize(("epsg", "refused"), [(32633, False), (32634, True)])
def test_a_sidecar_may_repeat_the_crs_of_a_file_and_not_change_it(
    make_scene: MakeScene, epsg: int, refused: bool
) -> None:
    path = make_scene()
    wkt = CRS.from_epsg(epsg).to_wkt().replace("&", "&amp;")
    path.with_name(f"{path.name}.aux.xml").write_text(f"<PAMDataset><SRS>{wkt}</SRS></PAMDataset>")
    if refused:
        with pytest.raises(SceneError, match=r"\(EPSG:32633.*contradicts its \.aux\.xml sidecar \(EPSG:32634"):
            describe_scene(path)
    else:
        assert describe_scene(path).grid.crs.to_epsg() == 32633


@pytest.mark.parametrize(("trained_m", "fits"), [(0.5, True), (0.41, True), (0.39, False), (0.66, True), (0.68, False)])
def test_the_tolerance_is_a_share_of_the_resolution_that_the_model_was_trained_at(
    make_scene: MakeScene, trained_m: float, fits: bool
) -> None:
    card = ModelCard(bands=("gray",), classes=("roof",), resolution_m=trained_m)
    path = make_scene(bands=1)
    if fits:
        describe_scene(path, ReadingSpec(resolution_tolerance=0.25), card=card)
    else:
        with pytest.raises(SceneError, match="but the model was trained at"):
            describe_scene(path, ReadingSpec(resolution_tolerance=0.25), card=card)
