"""Artifacts next to the checkpoint: history, curves, the card's page, TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import SettingsError, TransientError
from pipeline.model.card import ModelCard
from pipeline.text import markdown
from pipeline.training.artifacts.card_limits import known_limits
from pipeline.training.artifacts.card_markdown import card_page
from pipeline.training.artifacts.curves import curves_png, reliability_png
from pipeline.training.artifacts.overlays import PredictedWindow
from pipeline.training.artifacts.tensorboard import EventLog, scalars
from pipeline.training.artifacts.write import check_artifacts, write_artifacts, write_history
from pipeline.training.records import EpochRecord, TrainReport
from pipeline.training.settings.artifacts import ArtifactsSpec
from pipeline.training.settings.spec import TrainSpec
from pipeline.training.validation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Reliability

GOOD = {"iou": 0.8, "precision": 0.9, "recall": 0.88, "f1": 0.89, "accuracy": 0.97}
TRAINING: dict[str, object] = {
    "scenes": [f"town_{k}" for k in range(8)],
    "validation": {"kind": "scenes", "scenes": [f"village_{k}" for k in range(6)], "parts": 6},
    "test": {"kind": "scenes", "scenes": [f"city_{k}" for k in range(6)], "parts": 6},
    "labels": {"repaired": 0, "dropped": 0},
    "class_share": {"roof": 0.2},
    "metrics": {
        "validation": {"iou": 0.8, "f1": 0.89, "bce": 0.1, "ece_before": 0.04, "ece": 0.01, "classes": {"roof": GOOD}},
        "test": {"iou": 0.79, "f1": 0.88, "bce": 0.11, "ece_before": 0.05, "ece": 0.02, "classes": {"roof": GOOD}},
    },
    "calibration": {"temperature": 1.3},
    "settings": {"classes": ["roof"], "seed": 4, "learning": {"epochs": 7}},
}


def card_with(**facts: object) -> ModelCard:
    """A card without a fault, with some facts replaced."""
    return ModelCard(
        bands=("red", "green", "blue"), classes=("roof",), resolution_m=0.3, training={**TRAINING, **facts}
    )


def records(count: int, names: Sequence[str] = ("roof",)) -> tuple[EpochRecord, ...]:
    return tuple(
        EpochRecord(
            epoch=epoch,
            loss=1 / epoch,
            learning_rate=1e-3 / epoch,
            bce=0.5 / epoch,
            threshold=0.4,
            iou=1 - 1 / (epoch + 1),
            f1=1 - 0.8 / (epoch + 1),
            seconds=2.5,
            classes={name: {"iou": None if epoch == 1 else 0.5, "precision": 0.6, "recall": 0.7} for name in names},
        )
        for epoch in range(1, count + 1)
    )


def report_of(folder: Path, card: ModelCard | None = None, epochs: int = 3) -> TrainReport:
    history = records(epochs)
    return TrainReport(
        checkpoint=folder.with_suffix(".safetensors"),
        sha256="ab" * 32,
        card=card or card_with(),
        best_epoch=epochs,
        best_iou=history[-1].iou,
        stopped="patience",
        history=history,
        seconds=90.0,
        pixels_per_second=1e6,
        folder=folder,
    )


def reliability_of(gap: float) -> Reliability:
    """Of two filled bins and an empty one, each so far from the diagonal."""
    confidence = np.array([0.05, np.nan, 0.9])
    return Reliability(confidence=confidence, accuracy=confidence - gap, count=np.array([900, 0, 40]))


def windows(count: int) -> list[PredictedWindow]:
    rng = np.random.default_rng(0)
    return [
        PredictedWindow(
            scene="a/b c",
            row=32 * k,
            col=0,
            pixels=rng.integers(0, 255, (3, 32, 32)).astype(np.uint8),
            valid=np.ones((32, 32), bool),
            truth=rng.random((1, 32, 32)) < 0.5,
            weight_mask=np.ones((1, 32, 32), bool),
            probability=rng.random((1, 32, 32), np.float32),
        )
        for k in range(count)
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


numbers = st.floats(allow_nan=True, allow_infinity=False, width=32)


@given(values=st.lists(numbers, min_size=1, max_size=4), score=st.none() | numbers)
def test_history_reads_back_as_it_was_to_six_digits(tmp_path_factory, values: list[float], score: float | None):
    history = [
        replace(records(1)[0], epoch=k, loss=v, classes={'a "b", c': {"iou": score}}) for k, v in enumerate(values)
    ]
    rows = read_rows(write_history(tmp_path_factory.mktemp("run"), history))
    assert [int(row["epoch"]) for row in rows] == list(range(len(values)))
    for row, value in zip(rows, values, strict=True):
        assert row["loss"] == "" if np.isnan(value) else float(row["loss"]) == pytest.approx(value, rel=1e-5)
        cell = row['classes.a "b", c.iou']
        undefined = score is None or np.isnan(score)
        assert cell == "" if undefined else float(cell) == pytest.approx(score, rel=1e-5)


def test_history_has_a_column_for_every_number_of_an_epoch(tmp_path: Path):
    rows = read_rows(write_history(tmp_path / "new" / "folder", records(2, ("roof", "road"))))
    singles = [key for key in asdict(records(1)[0]) if key != "classes"]
    scores = [f"classes.{name}.{score}" for name in ("roof", "road") for score in ("iou", "precision", "recall")]
    assert list(rows[0]) == singles + scores
    assert rows[0]["classes.roof.iou"] == ""
    assert rows[1]["classes.roof.iou"] == "0.5"


def test_history_is_rewritten_atomically(tmp_path: Path):
    write_history(tmp_path, records(3))
    write_history(tmp_path, records(2))
    assert len(read_rows(tmp_path / "history.csv")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize(
    ("epochs", "names"),
    [
        (1, ("roof",)),
        (60, ("background", "roof", "road")),
        (3, tuple(f"class {k}" for k in range(30))),
        (2, ()),
    ],
)
def test_curves_are_drawn_for_any_history(epochs: int, names: tuple[str, ...]):
    history = records(epochs, names)
    picture = Image.open(io.BytesIO(curves_png(history, epochs)))
    assert picture.size == (1200, 800)
    picture.verify()


def test_curves_show_which_epoch_was_best():
    assert curves_png(records(3), 2) != curves_png(records(3), 3)


def test_reliability_is_drawn_with_empty_bins_and_shows_what_calibration_did():
    before, after = reliability_of(0.1), reliability_of(0.01)
    picture = Image.open(io.BytesIO(reliability_png(before, after)))
    assert picture.width == 1200
    assert reliability_png(before, after) != reliability_png(after, after)


def test_reliability_is_drawn_without_any_prediction():
    nothing = replace(reliability_of(0), count=np.zeros(3, np.int64))
    assert Image.open(io.BytesIO(reliability_png(nothing, nothing))).width == 1200


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"metrics": {}}, "no metrics"),
        ({"metrics": {"validation": {"iou": 0.8}}}, "no test part"),
        ({"metrics": {"iou": 0.8, "classes": {"roof": GOOD}}}, "no test part"),  # a card of version 0.1
        ({"metrics": {"validation": {"iou": 0.8}, "test": {"iou": 0.6}}}, "well below validation"),
        ({"test": {"parts": 1}}, "rest on one scene or block only"),
        ({"scenes": ["town_1"]}, "a single scene (town_1)"),
        ({"scenes": ["a", "b", "c"]}, "3 scenes only"),
        ({"validation": {"scenes": ["town_1"], "parts": 9}}, "also learned from"),
        ({"class_share": {"roof": 0.004}}, "covers 0.40%"),
        ({"metrics": {"test": {"iou": 0.3, "classes": {"roof": {**GOOD, "recall": 0.2}}}}}, "found poorly"),
        ({"metrics": {"test": {"iou": 0.0, "classes": {"roof": {"recall": None}}}}}, "does not occur in the test"),
        ({"metrics": {"test": {"iou": 0.8}}, "calibration": {}}, "not been held against observed"),
        ({"metrics": {"test": {"iou": 0.8, "ece": 0.2}}}, "off by 0.200"),
        ({"labels": {"repaired": 12, "dropped": 1}}, "12 geometries were repaired"),
    ],
)
def test_limits_are_stated_when_the_record_shows_them(facts: dict[str, object], sentence: str):
    assert any(sentence in limit for limit in known_limits(card_with(**facts)))


@pytest.mark.parametrize(
    ("temperature", "reported"), [(MIN_TEMPERATURE, True), (MAX_TEMPERATURE, True), (19.9, False), (0.3, False)]
)
def test_a_temperature_at_its_bound_is_reported(temperature: float, reported: bool):
    limits = known_limits(replace(card_with(), outputs="logits", temperature=temperature))
    assert any(f"ran into its bound of {temperature:g}" in limit for limit in limits) is reported


def test_a_complete_card_states_only_its_inputs():
    (only,) = known_limits(card_with())
    assert "the bands red, green, blue" in only
    assert "0.3 m" in only


def test_a_card_without_training_facts_has_a_page():
    page = card_page(ModelCard(bands=("pan",), classes=("ship",)))
    assert "Finds **ship**" in page
    assert "no metrics" in page
    assert "## Data" not in page
    assert "## Settings" not in page


@pytest.mark.parametrize("strange", [None, 3, "text", [], [None], {"roof": "x"}, {"classes": [1]}])
@pytest.mark.parametrize("key", list(TRAINING))
def test_facts_of_an_unknown_form_are_omitted_from_the_page(key: str, strange: object):
    assert "## Limits" in card_page(card_with(**{key: strange}))


def test_the_page_gives_the_command_metrics_and_what_was_set(tmp_path: Path):
    page = card_page(card_with(), checkpoint="my model.safetensors", report=report_of(tmp_path / "model.run"))
    assert "scenemill segment SCENE.tif --model 'my model.safetensors' --out OUT" in page
    assert "| test | 0.790 | 0.880 | 0.110 |" in page
    assert "| roof | 0.800 | 0.890 | 0.900 | 0.880 | 0.970 |" in page
    assert "| test | 0.050 | 0.020 |" in page
    assert "epoch 3 of 3 kept; ended because validation no longer improved" in page


def test_the_page_lists_the_settings_that_are_not_defaults_and_only_those():
    settings = asdict(replace(TrainSpec(classes=("roof", "road")), seed=7))
    page = card_page(card_with(settings=settings))
    assert re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE) == ["classes", "seed"]
    assert '| `classes` | `["roof", "road"]` | `["object"]` |' in page
    assert "All settings have their defaults." in card_page(card_with(settings=asdict(TrainSpec())))


@given(name=st.text(min_size=1, max_size=12).filter(str.strip))
def test_no_name_breaks_a_table_or_becomes_markup(name: str):
    assert "\n" not in markdown(name)
    assert not re.search(r"(?<!\\)[|<>`*\[\]]", markdown(name).replace("\\\\", ""))


def test_a_run_writes_every_file_and_the_page_links_them(tmp_path: Path):
    folder = tmp_path / "model.run"
    written = write_artifacts(
        folder,
        report_of(folder),
        spec=ArtifactsSpec(overlays=4),
        reliability=(reliability_of(0.1), reliability_of(0.01)),
        windows=windows(9),
    )
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(list((folder / "overlays").iterdir())) == 4
    links = re.findall(r"!\[.*?\]\(<(.*?)>\)", (folder / "card.md").read_text(encoding="utf-8"))
    pictures = [path.relative_to(folder).as_posix() for path in written if path.suffix == ".png"]
    assert links == pictures
    assert all(re.fullmatch(r"[\w./-]+", link) for link in links)


def test_pictures_of_an_earlier_run_do_not_stay(tmp_path: Path):
    for number in (2, 1):
        write_artifacts(tmp_path, report_of(tmp_path), spec=ArtifactsSpec(overlays=number), windows=windows(3))
    assert len(list((tmp_path / "overlays").iterdir())) == 1


def test_windows_are_not_computed_when_no_picture_is_wanted(tmp_path: Path):
    unused = iter(windows(1))
    write_artifacts(tmp_path, report_of(tmp_path), spec=ArtifactsSpec(overlays=0), windows=unused)
    assert len(list(unused)) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "model.run").write_text("a file")
    with pytest.raises(TransientError, match=r"model\.run.*check the disk"):
        write_artifacts(tmp_path / "model.run", report_of(tmp_path), spec=ArtifactsSpec())


def test_a_resumed_run_shows_every_epoch_once(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = records(5)
    with EventLog(tmp_path) as log:
        for record in history[:4]:  # killed after the 4th was told, but before it was kept
            log.add(replace(record, loss=99.0) if record.epoch == 4 else record)
    with EventLog(tmp_path, first_epoch=4) as log:
        for record in history[3:]:
            log.add(record)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in events.Tags()["scalars"]:
        shown = {event.step: event.value for event in events.Scalars(name)}
        expected = {record.epoch: dict(scalars(record)).get(name) for record in history}
        assert len(events.Scalars(name)) == len(shown)
        assert shown == {k: pytest.approx(value) for k, value in expected.items() if value is not None}
    assert {"loss", "iou", "classes/roof/iou"} <= set(events.Tags()["scalars"])


def test_a_missing_tensorboard_is_noticed_before_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_artifacts(ArtifactsSpec())
    with pytest.raises(SettingsError, match=r"artifacts\.tensorboard.*pip install scenemill\[tensorboard\]"):
        check_artifacts(ArtifactsSpec(tensorboard=True))


@pytest.mark.parametrize("overlays", [-1, 61])
def test_the_number_of_overlays_has_bounds(overlays: int):
    with pytest.raises(SettingsError, match=rf"^overlays must be from 0 to 60, not {overlays}"):
        ArtifactsSpec(overlays=overlays)


def test_settings_do_not_load_what_draws():
    script = "import pipeline.training.artifacts.write, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"matplotlib", "PIL", "torch", "tensorboard"} & set(done.stdout.split()) == set()
