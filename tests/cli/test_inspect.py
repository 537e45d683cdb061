"""What a path is, told as facts, and whether scene and model fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import MakeScene
from support.models import ROOF, brightness, write_checkpoint

from pipeline.cli.inspect import inspect_path
from pipeline.errors import ModelError, SceneError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.checkpoint import describe_checkpoint
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene


def facts_of(path: Path, **reading: object) -> dict[str, str]:
    kind, facts = inspect_path(str(path), ReadingSpec(**reading))  # type: ignore[arg-type]
    assert kind == "scene"
    return dict(facts)


def test_a_scene_is_described_by_size_place_type_bands_and_blocks(make_scene: MakeScene) -> None:
    scene = make_scene(height=300, width=200, dtype="uint16", descriptions=["red", "green", "nir"], tiled=64)
    facts = facts_of(scene)
    assert facts["size"] == "300 rows x 200 columns (0.1 Mpx)"
    assert facts["CRS"] == "EPSG:32633"
    assert facts["ground pixel"] == "0.5002 m"
    assert facts["type"] == "uint16"
    assert facts["bands"] == "1: red, 2: green, 3: nir"
    assert facts["blocks"] == "64 x 64 px"
    assert facts["driver"] == "GTiff"
    assert "orientation" not in facts
    assert "scale and offset" not in facts


def test_a_crs_without_a_number_is_shown_by_its_name(make_scene: MakeScene) -> None:
    facts = facts_of(make_scene(crs="+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84"))
    assert "Lambert_Azimuthal_Equal_Area" in facts["CRS"].replace(" ", "_") or "unknown" in facts["CRS"]
    assert len(facts["CRS"]) <= 100


def test_a_scene_that_is_not_north_up_is_described_so(make_scene: MakeScene) -> None:
    turned = Affine.translation(500_000, 5_400_000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)
    assert facts_of(make_scene(transform=turned))["orientation"].startswith("not north-up: ")


@pytest.mark.parametrize(
    ("scene", "reading", "rule"),
    [
        ({}, {}, "all"),
        ({"nodata": 0}, {}, "not 0 in all bands"),
        ({"nodata": 0}, {"nodata_when": "any_band"}, "not 0 in any band"),
        ({"nodata": 0}, {"ignore_nodata": True}, "all"),
        ({}, {"nodata": 7}, "not 7 in all bands"),
        ({"alpha": np.ones((40, 50), bool)}, {}, "alpha band 4 over 0"),
        ({"mask": np.ones((40, 50), bool)}, {}, "dataset mask set"),
        ({"dtype": "float32"}, {}, "no NaN in any band"),
        ({"dtype": "float32", "nodata": -1}, {}, "not -1 in all bands and no NaN in any band"),
    ],
)
def test_the_rule_for_valid_pixels_is_shown(
    make_scene: MakeScene, scene: dict[str, object], reading: dict[str, object], rule: str
) -> None:
    assert facts_of(make_scene(**scene), **reading)["valid pixels"] == rule  # type: ignore[arg-type]


def test_scale_and_offset_tags_are_shown_where_they_matter(make_scene: MakeScene) -> None:
    scene = make_scene(dtype="int16", descriptions=["red", "green", "blue"], scales=[0.5, 1, 1], offsets=[-2, 0, 0.25])
    assert facts_of(scene)["scale and offset"] == "red = pixel * 0.5 + -2; blue = pixel * 1 + 0.25"


def test_a_mosaic_is_described_by_its_inputs(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(name="town.tif", bands=1, descriptions=["red"])
    report = segment_scene(scene, tmp_path, predictor=brightness, card=ROOF)
    kind, facts = inspect_path(str(Path(report.folder) / "probability.tif"), ReadingSpec())
    shown = dict(facts)
    assert (kind, shown["scene"], shown["model"], shown["classes"]) == ("mosaic", "town", "function", "roof")
    assert shown["levels"] == "0..254 mean probability 0..1"


def test_a_checkpoint_is_described_by_hash_network_and_card(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", resolution_m=0.5, training={"best_iou": 0.75})
    kind, facts = inspect_path(str(path), ReadingSpec())
    shown = dict(facts)
    assert kind == "checkpoint"
    assert shown["sha256"] == describe_checkpoint(path).sha256
    assert shown["bands"] == "red, green, blue"
    assert shown["resolution"] == "0.5 m"
    assert shown["tile sizes"] == "0 modulo 4 px, margin 0 px"
    assert shown["training: best_iou"] == "0.75"
    assert "depth 2" in shown["architecture"]
    assert int(shown["parameters"].replace(",", "")) > 1000


def test_exclusive_classes_have_no_threshold_to_show(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", classes=("ground", "roof"), activation="softmax")
    shown = dict(inspect_path(str(path), ReadingSpec())[1])
    assert "threshold" not in shown
    assert shown["activation"] == "softmax (the network returns logits)"


@pytest.mark.parametrize(
    ("scene", "facts", "verdict"),
    [
        ({}, {}, "yes"),
        ({"bands": 1}, {}, "no: .*needs band"),
        ({"dtype": "uint16", "photometric": "rgb"}, {"dtype": "uint8"}, "no: .*uint8"),
        ({}, {"resolution_m": 5.0}, "no: .*5 m"),
        ({}, {"resolution_m": 0.5}, "yes"),
    ],
)
def test_the_last_fact_is_whether_scene_and_model_fit(
    make_scene: MakeScene, tmp_path: Path, scene: dict[str, object], facts: dict[str, object], verdict: str
) -> None:
    import re

    model = write_checkpoint(tmp_path / "m.safetensors", **facts)
    _, shown = inspect_path(str(make_scene(**scene)), ReadingSpec(), model=model)  # type: ignore[arg-type]
    assert shown[-1][0] == "fits model"
    assert re.match(verdict, shown[-1][1])


def test_only_scenes_are_checked_against_a_model(make_scene: MakeScene, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(SettingsError, match="only a scene can be checked against a model"):
        inspect_path(str(model), ReadingSpec(), model=model)


def test_a_missing_model_is_not_taken_for_a_scene_that_does_not_fit(make_scene: MakeScene, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such checkpoint"):
        inspect_path(str(make_scene()), ReadingSpec(), model=tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.tif", None, "no such file"),
        ("a.tif", b"", "an empty file"),
        ("a.tif", b"II*\0 and then nothing", "truncated: it has"),
        ("notes.txt", b"some words", "not a raster this system knows"),
        ("m.safetensors", b"some words", "not a safetensors file"),
    ],
)
def test_what_is_none_of_them_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((SceneError, ModelError), match=reason):
        inspect_path(str(path), ReadingSpec())


def test_a_raster_without_georeferencing_is_refused_without_a_warning(make_scene: MakeScene, tmp_path: Path) -> None:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    path = tmp_path / "plain.tif"
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(path, "w", driver="GTiff", count=1, height=5, width=5, dtype="uint8") as dataset,
    ):
        dataset.write(np.ones((1, 5, 5), np.uint8))
    with pytest.raises(SceneError, match="geotransform"):
        inspect_path(str(path), ReadingSpec())


def test_the_facts_of_a_card_hold_for_any_model() -> None:
    from pipeline.cli.inspect import _card_facts

    shown = dict(_card_facts(ModelCard(bands=("red",), classes=("roof",), receptive_field=None, dtype="uint8")))
    assert (shown["receptive field"], shown["source type"], shown["resolution"]) == ("unbounded", "uint8", "any")
