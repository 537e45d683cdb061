"""The survey measures what is learned from, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import MakeScene
from labelled import (
    ORIGIN,
    Town,
    polygon_labels,
)
from rasterio.windows import Window

from pipeline.errors import LabelError, SceneError
from pipeline.scene import describe_scene
from pipeline.training.samples import LabelledScene
from pipeline.training.splits import Area
from pipeline.training.survey import survey


def test_the_survey_measures_valid_training_pixels_in_raw_units(town: Town, make_scene: MakeScene) -> None:
    valid = np.ones((96, 96), bool)
    valid[:, :30] = False
    image = make_scene(town.pixels, transform=ORIGIN, mask=valid, scales=(2.0, 1.0, 1.0), offsets=(5.0, 0.0, 0.0))
    source = LabelledScene(describe_scene(image), polygon_labels(town))
    facts = survey([Area(source=source, held_out=(Window(50, 20, 30, 10),))], ("roof",), seed=0)
    valid[20:30, 50:80] = False
    raw = town.pixels[:, valid] * np.array([[2.0], [1.0], [1.0]]) + np.array([[5.0], [0.0], [0.0]])
    assert facts.pixels == valid.sum()
    assert np.allclose(facts.mean, raw.mean(axis=1))
    assert np.allclose(facts.deviation, raw.std(axis=1))
    assert np.allclose(facts.class_share, town.mask[valid].mean())


def test_a_class_without_a_training_pixel_and_a_constant_band_are_refused(town: Town, make_scene: MakeScene) -> None:
    labels = polygon_labels(town, ("roof", "pool"), "kind")
    source = LabelledScene(describe_scene(town.image), labels)
    with pytest.raises(LabelError, match="no training pixel is of class pool"):
        survey([Area(source=source)], ("roof", "pool"), seed=0)
    flat = town.pixels.copy()
    flat[1] = 9
    source = LabelledScene(describe_scene(make_scene(flat, transform=ORIGIN)), polygon_labels(town))
    with pytest.raises(SceneError, match=r"band\(s\) green are constant|band\(s\) .* are constant"):
        survey([Area(source=source)], ("roof",), seed=0).normalization()
