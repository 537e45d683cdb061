"""A model's bands are found by name, in the words of the file, of STAC, or of the settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SceneError
from pipeline.scene.bands import canonical_name, choose_bands, offered_bands


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("Red", "red"),
        ("R", "red"),
        ("NIR", "nir"),
        ("near infrared", "nir"),
        ("Near-Infrared", "nir"),
        ("red_edge", "rededge"),
        ("SWIR 1", "swir16"),
        ("shortwave infrared 1", "swir16"),
        ("gray", "pan"),
        ("Panchromatic", "pan"),
        ("Coastal Aerosol", "coastal"),
        ("B8A", "b8a"),  # sensor numbers mean different bands on different sensors: never translated
    ],
)
def test_spellings_of_one_band_meet_in_the_stac_name(spelt: str, name: str) -> None:
    assert canonical_name(spelt) == name


@given(st.text())
def test_a_canonical_name_is_its_own(name: str) -> None:
    assert canonical_name(canonical_name(name)) == canonical_name(name)


@pytest.mark.parametrize(
    ("descriptions", "interpretations", "offered"),
    [
        (("nir", None), ("red", "green"), {"nir": 1, "green": 2}),  # a description beats the colour
        ((None, None), ("gray", "undefined"), {"gray": 1, "band_2": 2}),
        ((None, None), ("gray", "gray"), {"gray": 1, "band_2": 2}),  # a name is given once
        ((None, None), ("red", "alpha"), {"red": 1}),
        (("B04", "B04"), ("gray", "undefined"), {"B04": 1, "band_2": 2}),
    ],
)
def test_bands_are_offered_by_the_best_name_they_have(
    descriptions: tuple[str | None, ...], interpretations: tuple[str, ...], offered: dict[str, int]
) -> None:
    assert offered_bands(descriptions, interpretations, explicit={}) == offered


def test_alpha_is_offered_only_when_it_is_known_to_be_data() -> None:
    assert offered_bands([None, None], ["red", "alpha"], explicit={}, use_alpha=True) == {"red": 1, "band_2": 2}
    assert offered_bands([None, "nir"], ["red", "alpha"], explicit={}, use_alpha=True) == {"red": 1, "nir": 2}


def test_an_explicit_name_replaces_the_files_own() -> None:
    offered = offered_bands(["red", "green"], ["red", "green"], explicit={"nir": 1})
    assert offered == {"nir": 1, "green": 2}
    offered = offered_bands(["red", "green"], ["red", "green"], explicit={"red": 2})
    assert choose_bands(offered, ["red"], place="a.tif") == {"red": 2}


@given(st.permutations(["red", "green", "blue", "nir"]))
def test_chosen_bands_are_in_the_models_order(wanted: list[str]) -> None:
    offered = {"Blue": 1, "G": 2, "RED": 3, "Near Infrared": 4}
    numbers = {"red": 3, "green": 2, "blue": 1, "nir": 4}
    assert list(choose_bands(offered, wanted, place="a.tif").items()) == [(name, numbers[name]) for name in wanted]


def test_without_a_wish_all_bands_come_in_file_order() -> None:
    assert [*choose_bands({"nir": 4, "red": 1}, None, place="a.tif")] == ["red", "nir"]


def test_the_first_of_two_bands_of_one_meaning_is_taken() -> None:
    assert choose_bands({"r": 1, "Red": 2}, ["red"], place="a.tif") == {"red": 1}


def test_a_missing_band_is_reported_with_the_available_bands_and_the_remedy() -> None:
    with pytest.raises(SceneError) as refusal:
        choose_bands({"B04": 1, "B03": 2}, ["red", "nir"], place="a.tif")
    assert str(refusal.value) == (
        "a.tif: the model needs band(s) red, nir, but the file offers 1: B04, 2: B03; if you know which is which, "
        "set reading.bands, e.g. {red: 1, nir: 2}"
    )


def test_a_file_of_alpha_alone_has_nothing_to_offer() -> None:
    with pytest.raises(SceneError, match="no band besides alpha"):
        choose_bands({}, None, place="a.tif")
