"""The model card validates itself, survives JSON and pickle, and says what each mask value means."""

import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.model.card import ModelCard, Normalization


def make_card(**changes: Any) -> ModelCard:
    return ModelCard(**({"bands": ("red", "green", "blue"), "classes": ("building",)} | changes))


FULL = make_card(
    classes=("background", "road", "roof"),
    activation="softmax",
    outputs="logits",
    background="background",
    normalization=Normalization.standard([10, 20, 30], [1, 2, 4]),
    dtype="uint16",
    resolution_m=0.3,
    stride=16,
    size_offset=12,
    margin=92,
    receptive_field=None,
    aligned_halo=92,
    temperature=1.5,
    tile_size=572,
    training={"data": ["a.tif"], "metrics": {"iou": 0.7}},
)


@pytest.mark.parametrize("card", [make_card(), FULL])
def test_a_card_survives_json_and_pickle(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json()) == card
    assert pickle.loads(pickle.dumps(card)) == card
    assert hash(ModelCard.from_json(card.to_json())) == hash(card)


def test_a_card_from_before_temperature_and_tile_size_loads_as_ever() -> None:
    content = {key: value for key, value in asdict(make_card()).items() if key not in ("temperature", "tile_size")}
    card = ModelCard.from_json(json.dumps(content))
    assert (card.temperature, card.tile_size) == (1.0, None)
    assert card == make_card()


def test_lists_become_tuples_and_the_training_facts_become_plain_json() -> None:
    card = make_card(bands=["red"], training={"split": ("north", "south")})
    assert card.bands == ("red",)
    assert card.training == {"split": ["north", "south"]}


@pytest.mark.parametrize(
    ("changes", "mask_values", "foreground"),
    [
        ({"classes": ("a",)}, (1,), ((0, 1, "a"),)),  # binary
        ({"classes": ("a", "b")}, (1, 2), ((0, 1, "a"), (1, 2, "b"))),  # multi-label
        ({"classes": ("a", "b"), "activation": "softmax"}, (1, 2), ((0, 1, "a"), (1, 2, "b"))),  # all land classed
        ({"classes": ("none", "b"), "activation": "softmax", "background": "none"}, (0, 1), ((1, 1, "b"),)),
    ],
)
def test_zero_is_never_a_foreground_class(
    changes: dict[str, Any], mask_values: tuple[int, ...], foreground: tuple[tuple[int, int, str], ...]
) -> None:
    card = make_card(**changes)
    assert card.mask_values == mask_values
    assert card.foreground == foreground


def test_the_named_normalizations_are_the_affine_maps_they_claim() -> None:
    standard = Normalization.standard([10, 20], [2, 5])
    assert [12 * standard.gain[0] + standard.bias[0], 20 * standard.gain[1] + standard.bias[1]] == [1, 0]
    ranged = Normalization.value_range([100], [300])
    assert [v * ranged.gain[0] + ranged.bias[0] for v in (100, 200, 300)] == pytest.approx([0, 0.5, 1])
    assert ranged.clip == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": ()}, "bands must hold at least one"),
        ({"bands": ("red", "red", "blue")}, "none twice"),
        ({"bands": "red"}, "bands must be a sequence of non-empty names, not 'red'"),
        ({"classes": ("", "b")}, "classes must be a sequence of non-empty names"),
        ({"classes": tuple(map(str, range(255)))}, "at most 254"),
        ({"activation": "relu"}, "activation must be one of sigmoid, softmax, not 'relu'"),
        ({"outputs": "scores"}, "outputs must be one of"),
        ({"activation": "softmax"}, "at least two classes"),
        ({"background": "building"}, "background must be the first class"),
        ({"classes": ("a", "b"), "activation": "softmax", "background": "b"}, "not 'b'"),
        ({"temperature": 0, "outputs": "logits"}, "temperature must be above 0, not 0"),
        ({"temperature": "1", "outputs": "logits"}, "temperature must be a finite number, not '1'"),
        ({"temperature": 2}, "temperature 2.0 divides logits, but the network returns probabilities"),
        ({"tile_size": 0}, "tile_size must be a whole number >= 1, not 0"),
        ({"tile_size": 250, "stride": 16}, "tile_size must be 0 modulo stride 16"),
        ({"tile_size": 20, "margin": 10}, "above 20 px .twice the margin., not 20"),
        ({"threshold": 0}, "threshold must be above 0"),
        ({"threshold": float("nan")}, "threshold must be a finite number, not nan"),
        ({"dtype": "complex64"}, "dtype must be one of"),
        ({"resolution_m": -0.3}, "resolution_m must be above 0, not -0.3"),
        ({"stride": 0}, "stride must be a whole number >= 1, not 0"),
        ({"stride": "16"}, "not '16'"),
        ({"stride": 16, "size_offset": 16}, "size_offset must be below stride 16"),
        ({"margin": -1}, "margin must be a whole number >= 0"),
        ({"receptive_field": 0}, "receptive_field must be a whole number >= 1"),
        ({"normalization": Normalization(gain=(1.0, 2.0))}, "normalization is for 2 bands, but bands has 3"),
        ({"training": {"iou": float("nan")}}, "training must hold JSON values"),
    ],
)
def test_an_invalid_card_names_the_violated_rule(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("(", r"\(")):
        make_card(**changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gain": (0.0,)}, "must not be 0"),
        ({"gain": (1.0,), "bias": (1.0, 2.0)}, "same bands"),
        ({"clip": (1.0, 1.0)}, "low < high"),
        ({"gain": ("1",)}, "finite number"),
        ({"gain": (float("inf"),)}, "finite number"),
    ],
)
def test_an_invalid_normalization_names_the_violated_rule(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Normalization(**fields)


def test_a_flat_band_cannot_be_standardised() -> None:
    with pytest.raises(ModelError, match="deviation above 0"):
        Normalization.standard([1, 2], [1, 0])
    with pytest.raises(ModelError, match="low < high"):
        Normalization.value_range([1], [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"bands": ["red"]}', "the model card lacks classes; add"),
        (json.dumps(asdict(make_card()) | {"treshold": 0.4}), "did you mean 'threshold'"),
        (json.dumps(asdict(make_card()) | {"normalization": {"mean": [1]}}), "unknown key 'mean'"),
        (json.dumps(asdict(make_card()) | {"normalization": 3}), "normalization of the model card must be"),
    ],
)
def test_foreign_json_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(text)


def test_a_card_needs_no_torch() -> None:
    program = "import sys, pipeline.model.card; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split()[0] == "False"
