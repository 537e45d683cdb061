"""A scene that was stopped goes on from what is whole of it; what only polygons need does not run the network again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import MakeScene
from support.models import write_checkpoint

from pipeline import segment
from pipeline.catalog.entry import CatalogEntry
from pipeline.config import SegmentSpec, load_settings
from pipeline.distribute.cluster_executor import ClusterExecutor
from pipeline.distribute.executor import LocalExecutor
from pipeline.errors import DamagedSceneError, TransientError
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.results import OUTPUTS
from pipeline.results.report import SceneReport
from pipeline.results.stage_records import StageRecords
from pipeline.run.scenes import segment_catalog
from pipeline.scene.describe import describe_scene
from pipeline.segment import segment_scene
from pipeline.stages import previous as segment_former
from pipeline.stages.previous import ExistingResult, find_existing
from pipeline.storage.files import sha256_file

if TYPE_CHECKING:
    from distributed import Client

SETTINGS = ("tiling.tile_size=32", "tiling.overlap=8", "reading.threads=1", "distribute.regions=4")


def spec_of(*overrides: str) -> SegmentSpec:
    return load_settings(SegmentSpec, None, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoadedPredictor:
    path = write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")
    return load_predictor(path, "cpu", precision="float32")


@pytest.fixture
def scene(make_scene: MakeScene) -> Path:
    return make_scene(name="town.tif", height=200, width=70, tiled=16, nodata=0)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every output; of the report all but how it came about."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(found.pop("report.json"))
    facts = {key: value for key, value in report.items() if key not in ("seconds", "reused", "folder")}
    return {**found, "report.json": json.dumps(facts).encode()}


class Stop(KeyboardInterrupt):
    """What stops a run in these tests."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, scene: Path, predictor: LoadedPredictor, tmp_path: Path) -> Path:
    """The work folder of a run that was stopped while it made polygons of the whole mosaic."""
    return stop_in(monkeypatch, segment, "vectorize_mosaic", scene, predictor, tmp_path / "out")


def stop_in(
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    function: str,
    scene: Path,
    predictor: LoadedPredictor,
    out: Path,
    *overrides: str,
) -> Path:
    """Stop a run when it calls a function; returns its work folder."""

    def stop(*_: object, **__: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stop)
        with pytest.raises(Stop):
            segment_scene(scene, out, predictor=predictor, spec=spec_of(*overrides))
    return out / ".town.partial"


def stop_after_regions(
    monkeypatch: pytest.MonkeyPatch, scene: Path, predictor: LoadedPredictor, out: Path, regions: int
) -> Path:
    """Stop a run when so many regions are recorded; returns its work folder."""
    add, left = segment.RegionRecords.add, [regions]

    def add_some(records: segment.RegionRecords, result: segment.RegionResult) -> None:
        if not left[0]:
            raise Stop
        left[0] -= 1
        add(records, result)

    with monkeypatch.context() as patch:
        patch.setattr(segment.RegionRecords, "add", add_some)
        with pytest.raises(Stop):
            segment_scene(scene, out, predictor=predictor, spec=spec_of())
    return out / ".town.partial"


def never(*_: object, **__: object) -> None:
    raise AssertionError("this was done before")


# A run that was stopped


@pytest.mark.parametrize("regions", [1, 3, 4])
def test_regions_that_are_done_are_not_run_again(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regions: int
) -> None:
    calm = segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of())
    if regions == 4:
        stop_in(monkeypatch, segment, "record_inference", scene, predictor, tmp_path / "out")
    else:
        stop_after_regions(monkeypatch, scene, predictor, tmp_path / "out", regions)
    updates: list[tuple[str, int, int]] = []
    monkeypatch.setattr(LocalExecutor, "check_precision", never)
    if regions == 4:
        monkeypatch.setattr("pipeline.inference.region.run._RegionRun", never)
    again = segment_scene(
        scene, tmp_path / "out", predictor=predictor, spec=spec_of(), watch=lambda *step: updates.append(step)
    )
    assert again.statistics.reused == [f"{regions} of 4 regions"]
    assert calm.statistics.reused == []
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")
    assert os.listdir(tmp_path / "out") == ["town"]
    pixels = [done for stage, done, _ in updates if stage == "infer"]
    assert pixels == sorted(pixels)
    assert not pixels or pixels[0] > 200 * 70 * (regions - 0.5) / 4
    assert not pixels or pixels[-1] == 200 * 70


def test_regions_on_both_sides_of_one_that_is_done_are_run_apart(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a run on a cluster, where regions end in any order."""
    calm = segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of())
    work = stop_in(monkeypatch, segment, "record_inference", scene, predictor, tmp_path / "out")
    for index in (0, 2):
        (work / "stages" / f"region-{index:05d}.json").unlink()
    again = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
    assert again.statistics.reused == ["2 of 4 regions"]
    assert (again.statistics.tiles_run, again.polygons) == (calm.statistics.tiles_run, calm.polygons)
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")


def test_the_plan_of_regions_is_kept_by_every_resumed_run(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of())
    stop_after_regions(monkeypatch, scene, predictor, tmp_path / "out", 2)
    again = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of("distribute.regions=3"))
    assert again.statistics.reused == ["2 of 4 regions"]
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ((), ("mosaic", "mask")),
        (("polygons.min_area_m2=3",), ("mosaic", "mask")),
        (("polygons.threshold=0.7",), ("mosaic",)),
        (("blend=average",), ()),
    ],
    ids=["nothing", "polygons", "threshold", "blend"],
)
def test_a_change_undoes_the_stages_that_it_concerns_and_no_others(
    stopped: Path, scene: Path, predictor: LoadedPredictor, tmp_path: Path, change: tuple[str, ...], reused: tuple[str]
) -> None:
    again = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of(*change))
    assert tuple(again.statistics.reused) == reused
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of(*change))
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")
    assert os.listdir(tmp_path / "out") == ["town"]


@pytest.mark.parametrize("change", ["polygons.min_area_m2=3", "polygons.threshold=0.7"])
@pytest.mark.parametrize("place", ["regions", "infer", "report"])
def test_other_polygons_after_a_stop_anywhere_are_those_of_a_calm_run(
    scene: Path,
    predictor: LoadedPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    change: str,
) -> None:
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of(change))
    if place == "regions":
        stop_after_regions(monkeypatch, scene, predictor, tmp_path / "out", 3)
    else:
        function = {"infer": "record_inference", "report": "write_report"}[place]
        stop_in(monkeypatch, segment, function, scene, predictor, tmp_path / "out")
    again = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of(change))
    assert again.statistics.reused
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")


def test_another_model_or_scene_restarts(
    stopped: Path, scene: Path, predictor: LoadedPredictor, tmp_path: Path
) -> None:
    os.utime(scene, ns=(0, 0))
    assert segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of()).statistics.reused == []


def test_a_transient_error_keeps_finished_work_and_a_data_error_does_not(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error_raised, kept in ((TransientError("full"), True), (DamagedSceneError("torn"), False)):

        def fail(*_: object, error: Exception = error_raised, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(segment, "vectorize_mosaic", fail)
            with pytest.raises(type(error_raised)):
                segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
        assert (tmp_path / "out" / ".town.partial").exists() == kept


def test_the_rasters_of_regions_go_when_the_mosaic_is_there(stopped: Path) -> None:
    names = {path.name for path in stopped.rglob("*") if path.is_file()}
    assert names == {"glance.npy", "infer.json", "mosaic.json", "mask.json", "probability.tif", "mask.tif"}


# Torn files


DAMAGES = ("a bit flipped", "cut short", "gone")


@pytest.mark.parametrize("stage", ["regions", "report"])
def test_a_partial_file_is_never_accepted(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of())
    if stage == "regions":
        work = stop_after_regions(monkeypatch, scene, predictor, tmp_path / "kept", 1)
    else:
        work = stop_in(monkeypatch, segment, "write_report", scene, predictor, tmp_path / "kept")
    files = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
    assert len(files) > 4
    for number, file in enumerate(files):
        shutil.copytree(tmp_path / "kept", tmp_path / "out")
        tear(tmp_path / "out" / ".town.partial" / file, DAMAGES[number % len(DAMAGES)])
        segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
        assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town"), file
        assert os.listdir(tmp_path / "out") == ["town"]
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_verifies_only_the_files_it_was_made_for(tmp_path: Path, damage: str) -> None:
    """The files of a stage, and the record itself, whatever byte of it."""
    stages = StageRecords(tmp_path)
    (tmp_path / "a").write_bytes(b"content")

    def recorded() -> Path:
        stages.record("stage", "key", {"count": 12}, [tmp_path / "a"])
        return tmp_path / "stages" / "stage.json"

    assert recorded().exists()
    assert stages.find("stage", "key") == {"count": 12}
    assert stages.find("stage", "other") is None
    assert stages.find("stage", None) is None
    tear(tmp_path / "a", damage)
    assert stages.find("stage", "key") is None
    (tmp_path / "a").write_bytes(b"content")
    record = recorded().read_bytes()
    for place in range(len(record) - 1):
        recorded().write_bytes(record[:place] + bytes([record[place] ^ 1]) + record[place + 1 :])
        assert stages.find("stage", "key") is None


def tear(file: Path, damage: str) -> None:
    content = bytearray(file.read_bytes())
    if damage == "cut short":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


# The mosaic of a finished result


@pytest.mark.parametrize(
    ("change", "reused"),
    [("polygons.min_area_m2=3", ("mosaic", "mask", "preview")), ("polygons.threshold=0.7", ("mosaic",))],
)
def test_other_polygons_of_a_finished_result_run_no_network(
    scene: Path,
    predictor: LoadedPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    reused: tuple[str, ...],
) -> None:
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of(change))
    segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
    before = (tmp_path / "out" / "town" / "probability.tif").stat().st_ino
    monkeypatch.setattr("pipeline.inference.region.run._RegionRun", never)
    monkeypatch.setattr(LocalExecutor, "check_precision", never)
    again = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of(change))
    assert tuple(again.statistics.reused) == reused
    assert (tmp_path / "out" / "town" / "probability.tif").stat().st_ino == before
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")
    assert os.listdir(tmp_path / "out") == ["town"]


def test_a_finished_mosaic_that_was_changed_is_not_reused(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path
) -> None:
    change = spec_of("polygons.min_area_m2=3")
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=change)
    segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
    tear(tmp_path / "out" / "town" / "probability.tif", "a bit flipped")
    assert segment_scene(scene, tmp_path / "out", predictor=predictor, spec=change).statistics.reused == []
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")


def test_a_disk_without_hard_links_gets_copies(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    segment_scene(scene, tmp_path, predictor=predictor, spec=spec_of())
    monkeypatch.setattr(segment_former.os, "link", refuse)
    again = segment_scene(scene, tmp_path, predictor=predictor, spec=spec_of("polygons.min_area_m2=3"))
    assert again.statistics.reused == ["mosaic", "mask", "preview"]


def test_the_previous_result_is_never_written_to_through_a_link(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs are stopped: one that shares the mask of the finished result, then one that decides another mask."""
    segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
    before = contents(tmp_path / "out" / "town")
    for change in ("polygons.min_area_m2=3", "polygons.threshold=0.7"):
        stop_in(monkeypatch, segment, "write_report", scene, predictor, tmp_path / "out", change)
        assert contents(tmp_path / "out" / "town") == before


# The source


@pytest.mark.parametrize("how", ["replaced", "touched", "removed"])
def test_a_scene_that_is_replaced_while_it_is_read_makes_no_mosaic(
    make_scene: MakeScene,
    scene: Path,
    predictor: LoadedPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    add = segment.RegionRecords.add
    other = make_scene(name="other.tif", height=200, width=70, tiled=16, nodata=0, seed=1)

    def add_and_replace(records: segment.RegionRecords, result: segment.RegionResult) -> None:
        add(records, result)
        if result.region.index == 1:
            if how == "replaced":
                os.replace(other, scene)
            elif how == "touched":
                os.utime(scene, ns=(1, 1))
            else:
                scene.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(segment.RegionRecords, "add", add_and_replace)
        with pytest.raises(TransientError, match="was replaced, changed or removed"):
            segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
    assert not (tmp_path / "out" / "town").exists()
    if how != "removed":
        assert segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of()).statistics.reused == []
        segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of())
        assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")


def test_a_run_describes_a_replaced_scene_again_and_makes_its_result(
    make_scene: MakeScene, scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, others = segment.RegionRecords.add, [make_scene(name="other.tif", height=120, width=90, tiled=16)]

    def add_and_replace(records: segment.RegionRecords, result: segment.RegionResult) -> None:
        add(records, result)
        if others:
            os.replace(others.pop(), scene)

    monkeypatch.setattr(segment.RegionRecords, "add", add_and_replace)
    spec, entry = spec_of("run.retries=1", "run.retry_delay_s=0"), CatalogEntry(id="town", location=str(scene))
    (report,) = segment_catalog([entry], tmp_path / "out", predictor=predictor, spec=spec)
    assert (report.status, report.statistics.pixels, report.statistics.reused) == ("done", 120 * 90, [])
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec)
    calm = contents(tmp_path / "calm" / "town")
    assert {name: contents(tmp_path / "out" / "town")[name] for name in calm} == calm


def test_damage_in_a_file_that_is_being_replaced_is_no_data_error(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        scene.write_bytes(scene.read_bytes()[:-100])
        raise DamagedSceneError("torn")

    monkeypatch.setattr("pipeline.inference.region.run.read_strips", fail)
    with pytest.raises(TransientError, match="was replaced"):
        segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())


# On a cluster


@pytest.mark.parametrize("exchanged", [False, True], ids=["one folder", "exchange place"])
def test_what_workers_have_done_is_not_done_again_here(
    threads: Client,
    scene: Path,
    predictor: LoadedPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exchanged: bool,
) -> None:
    there = spec_of(*([f"distribute.exchange={tmp_path / 'exchange'}"] if exchanged else []))
    segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec_of())

    def stop(*_: object, **__: object) -> None:
        raise Stop

    for owner, function in ((ClusterExecutor, "run_outputs"), (segment, "write_report")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, stop)
            with pytest.raises(Stop):
                segment_scene(scene, tmp_path / "out", predictor=predictor, spec=there, client=threads)
        for executor in (LocalExecutor, ClusterExecutor):
            monkeypatch.setattr(executor, "check_precision", never)
    report = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec_of())
    assert report.statistics.reused == ["mosaic", "mask", "polygons", "preview"]
    assert contents(tmp_path / "out" / "town") == contents(tmp_path / "calm" / "town")
    assert os.listdir(tmp_path / "out") == ["town"]


# What is foreseen


def test_it_is_foreseen_what_will_not_be_done_again(
    scene: Path, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, described = tmp_path / "out", describe_scene(scene, card=predictor.card)

    def found(*overrides: str) -> ExistingResult:
        return find_existing(described, out, predictor=predictor, spec=spec_of(*overrides), executor=LocalExecutor())

    assert found() == ExistingResult()
    stop_after_regions(monkeypatch, scene, predictor, out, 3)
    assert found() == ExistingResult(reusable="3 of 4 regions were completed by an interrupted run")
    assert found("blend=average") == ExistingResult()
    stop_in(monkeypatch, segment, "vectorize_mosaic", scene, predictor, out)
    assert found().reusable == "the mosaic of an interrupted run is reused"
    report = segment_scene(scene, out, predictor=predictor, spec=spec_of())
    finished = found().finished
    assert finished is not None
    assert (finished.status, finished.inputs.content_key) == ("skipped", report.inputs.content_key)
    assert found("polygons.min_area_m2=3").reusable.startswith("the mosaic of the result in its folder is reused")
    assert found("blend=average") == ExistingResult()


# Reports


def test_a_report_holds_the_checksums_of_its_files(scene: Path, predictor: LoadedPredictor, tmp_path: Path) -> None:
    report = segment_scene(scene, tmp_path, predictor=predictor, spec=spec_of())
    assert report.outputs.digests == {name: sha256_file(tmp_path / "town" / name) for name in OUTPUTS.values()}
    stored = SceneReport.from_json(json.loads((tmp_path / "town" / "report.json").read_text()))
    assert (stored.outputs.digests, stored.inputs.mosaic_key) == (report.outputs.digests, report.inputs.mosaic_key)
    assert report.inputs.mosaic_key != report.inputs.content_key
