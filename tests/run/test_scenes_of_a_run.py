"""Which errors end a run and which a scene; what is looked up ahead of it, and how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.entry import CatalogEntry
from pipeline.config import RunSpec, SegmentSpec
from pipeline.errors import SceneError, SettingsError, TransientError
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.results.report import SceneReport
from pipeline.run import one_scene, scenes
from pipeline.run.scenes import check_settings, segment_catalog

SPEC = SegmentSpec(run=RunSpec(retries=2, retry_delay_s=0))


@pytest.fixture(scope="module")
def predictor(model: str) -> LoadedPredictor:
    return load_predictor(model, "cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How often each step was tried for each scene; the name of a scene says what happens to it."""
    counted: Counter[tuple[str, str]] = Counter()

    def segment(entry: CatalogEntry, *_: Any, **__: Any) -> SceneReport:
        counted["segment", entry.id] += 1
        errors = {"bad": SceneError("torn"), "away": TransientError("away"), "wrong": SettingsError("no such class")}
        if entry.id in errors:
            raise errors[entry.id]
        return SceneReport(scene=entry.id, location=entry.location, status="done")

    def look_up(entry: CatalogEntry, *_: Any, **__: Any) -> None:
        counted["look up", entry.id] += 1
        if entry.id == "away":
            raise TransientError("away")

    monkeypatch.setattr(scenes, "segment_entry", segment)
    monkeypatch.setattr(scenes, "skip_entry", look_up)
    return counted


def run(names: list[str], out: Path, predictor: LoadedPredictor, spec: SegmentSpec = SPEC) -> list[str]:
    entries = [CatalogEntry(id=name, location=f"{name}.tif") for name in names]
    return [report.status for report in segment_catalog(entries, out, predictor=predictor, spec=spec)]


def test_a_wrong_setting_ends_the_run_and_a_bad_scene_only_itself(
    calls: Counter[tuple[str, str]], predictor: LoadedPredictor, tmp_path: Path
) -> None:
    assert run(["a", "bad", "b"], tmp_path / "1", predictor) == ["done", "failed", "done"]
    with pytest.raises(SettingsError, match="no such class"):
        run(["a", "wrong", "b"], tmp_path / "2", predictor)
    assert (calls["segment", "wrong"], calls["segment", "b"]) == (1, 1)


def test_a_scene_is_tried_again_and_its_look_up_is_not(
    calls: Counter[tuple[str, str]], predictor: LoadedPredictor, tmp_path: Path
) -> None:
    """A look-up that fails costs a run of the scene, which finds the result itself."""
    assert run(["away"], tmp_path, predictor) == ["failed"]
    assert (calls["look up", "away"], calls["segment", "away"]) == (1, 3)


def test_after_too_many_failures_no_scene_is_looked_up(
    calls: Counter[tuple[str, str]], predictor: LoadedPredictor, tmp_path: Path
) -> None:
    spec = replace(SPEC, run=RunSpec(max_failures=1))
    assert run(["bad", "a", "b"], tmp_path, predictor, spec) == ["failed", "not run", "not run"]
    assert {name for step, name in calls if step == "look up"} == {"bad"}


def test_an_area_that_is_not_there_ends_the_run_before_any_scene(
    calls: Counter[tuple[str, str]], predictor: LoadedPredictor, tmp_path: Path
) -> None:
    spec = replace(SPEC, area=str(tmp_path / "nowhere.gpkg"))
    with pytest.raises(SettingsError, match=r"nowhere\.gpkg"):
        check_settings(spec, predictor)
    with pytest.raises(SettingsError, match=r"nowhere\.gpkg"):
        run(["a"], tmp_path / "out", predictor, spec)
    assert not calls
    assert not (tmp_path / "out").exists()


def test_only_scenes_behind_addresses_are_looked_up_ahead(
    predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[str] = []

    def describe(entry: CatalogEntry, *_: object, **__: object) -> None:
        described.append(entry.location)
        raise SceneError("seen")

    monkeypatch.setattr(one_scene, "describe_entry", describe)
    look_up: Any = {"predictor": predictor, "spec": SPEC}
    local = CatalogEntry(id="a", location=str(tmp_path / "a.tif"))
    assert one_scene.skip_entry(local, tmp_path, **look_up) is None
    refused = CatalogEntry(id="b", location="https://h/b.tif", refused="no path")
    assert one_scene.skip_entry(refused, tmp_path, **look_up) is None
    with pytest.raises(SceneError, match="seen"):
        one_scene.skip_entry(replace(refused, refused=None), tmp_path, **look_up)
    assert described == ["https://h/b.tif"]
