"""Links, files and foreign folders planted among results: refused; nothing beyond `--out` is read, moved or deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Call, MakeScene

from pipeline.errors import AccessError, ScenemillError, TransientError
from pipeline.results.publish import finished_report, publishing, recover_report
from pipeline.results.report import read_report_file
from pipeline.results.results import open_results
from pipeline.results.stac_files import write_collection
from pipeline.results.stage_records import StageRecords
from pipeline.storage import folders, private_folder

FAST = [
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1", "--set", "run.retries=0"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
]
FOREIGN = 65534
"""Number of the user nobody."""


def publish(folder: Path, text: str = "new") -> None:
    with publishing(folder) as work:
        (work / "mask.tif").write_text(text)


def plant(folder: Path) -> Path:
    """A folder of someone else's files."""
    (folder / "sub").mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    (folder / "sub" / "deep.txt").write_text("more of it")
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every entry below a folder: the content of a file, or where a link leads."""
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}" if path.is_symlink() else path.read_text("latin-1")
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def is_locked(folder: Path) -> bool:
    try:
        publish(folder)
    except TransientError as error:
        return "another run is writing" in str(error)
    return False


# Links


@pytest.mark.parametrize("name", [".a.partial", ".a.former", "a"])
def test_a_link_in_place_of_a_folder_of_results_is_refused_and_nothing_behind_it_changes(
    tmp_path: Path, name: str
) -> None:
    victim, out = plant(tmp_path / "victim"), tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(victim)
    before = tree(tmp_path)
    for write in (publish, lambda folder: recover_report(folder, "k")):
        with pytest.raises(AccessError, match=r"is a symbolic link to .*victim; links are not followed"):
            write(out / "a")
        assert tree(tmp_path) == before
    assert not is_locked(out / "b")

    # Every handle was released: without the link the same process writes the folder.
    (out / name).unlink()
    publish(out / "a")
    assert tree(out / "a") == {"mask.tif": "new"}
    assert sorted(os.listdir(out)) == ["a", "b"]


@pytest.mark.parametrize("name", ["stages", "result", "regions"])
def test_a_link_inside_a_work_folder_is_refused(tmp_path: Path, name: str) -> None:
    victim, work = plant(tmp_path / "victim"), tmp_path / "out" / ".a.partial"
    work.mkdir(parents=True)
    (work / name).symlink_to(victim)
    before = tree(tmp_path)
    with pytest.raises(AccessError, match=rf"{name}: is a symbolic link"):
        publish(tmp_path / "out" / "a")
    assert tree(tmp_path) == before


def test_links_deeper_in_a_work_folder_are_removed_not_followed(tmp_path: Path) -> None:
    victim, work = plant(tmp_path / "victim"), tmp_path / "out" / ".a.partial"
    (work / "result").mkdir(parents=True)
    (work / "result" / "folder").symlink_to(victim)
    (work / "result" / "report.json").symlink_to(victim / "thesis.txt")
    before = tree(victim)
    publish(tmp_path / "out" / "a")
    assert tree(victim) == before
    assert tree(tmp_path / "out" / "a") == {"mask.tif": "new"}


def test_a_link_to_nothing_is_refused_as_well(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with pytest.raises(AccessError, match="is a symbolic link"):
        publish(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_becomes_a_link_while_the_lock_is_taken_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is on the folder that was opened, the name leads elsewhere since."""
    victim, opened = plant(tmp_path / "victim"), os.open
    before = tree(victim)

    def swap_then_lock(handle: int) -> bool:
        work = tmp_path / ".a.partial"
        if work.is_dir() and not work.is_symlink():
            work.rename(tmp_path / "aside")
            work.symlink_to(victim)
        return True

    monkeypatch.setattr("pipeline.results.publish.try_lock", swap_then_lock)
    with pytest.raises(AccessError, match="is a symbolic link"):
        publish(tmp_path / "a")
    assert tree(victim) == before
    assert os.open is opened


def test_the_folder_of_a_run_may_be_a_link_to_a_larger_disk(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    scene = make_scene(name="a.tif")
    assert call("segment", scene, "--model", model, "--out", tmp_path / "out", *FAST)[0] == 0
    assert (tmp_path / "disk" / "a" / "report.json").is_file()


def test_a_run_refuses_planted_links_and_finishes_the_other_scenes(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str
) -> None:
    """H2 and H3 of the review, through the command."""
    victim, out = plant(tmp_path / "victim"), tmp_path / "out"
    out.mkdir()
    for name in (".a.partial", "b", ".c.former"):
        (out / name).symlink_to(victim)
    scenes = [make_scene(name=f"{name}.tif") for name in "abcd"]
    before = tree(victim)
    code, _, _ = call("segment", *scenes, "--model", model, "--out", out, *FAST)
    rows = {row["scene"]: row for row in json.loads((out / "run.json").read_text())["scenes"]}
    assert (code, {name: row["status"] for name, row in rows.items()}) == (
        1,
        {"a": "failed", "b": "failed", "c": "failed", "d": "done"},
    )
    assert all("is a symbolic link to" in rows[name]["reason"] for name in "abc")
    assert tree(victim) == before
    assert not (out / "quarantine.json").exists()

    # The reading command refuses the same, and changes nothing.
    whole = tree(tmp_path)
    code, stdout, _ = call("catalog", *scenes, "--model", model, "--out", out, *FAST)
    assert code == 1
    assert stdout.count("is a symbolic link") >= 1
    assert tree(tmp_path) == whole


def test_the_catalog_command_repairs_nothing(tmp_path: Path, call: Call, make_scene: MakeScene, model: str) -> None:
    scene, out = make_scene(name="a.tif"), tmp_path / "out"
    assert call("segment", scene, "--model", model, "--out", out, *FAST)[0] == 0
    (out / "a").rename(out / ".a.former")  # killed between the two renames of a swap
    before = tree(out)
    code, stdout, _ = call("catalog", scene, "--model", model, "--out", out, *FAST)
    assert (code, "done    a" in stdout) == (0, True)
    assert tree(out) == before
    assert call("segment", scene, "--model", model, "--out", out, *FAST)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["a", "collection.json", "run.json"]


def test_the_collection_and_a_merge_leave_linked_folders_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plant(tmp_path / "victim")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "victim")
    results = open_results(tmp_path / "out")
    assert [*results.scenes.ids()] == []
    assert "a link to a folder" in caplog.text
    write_collection(results)
    assert os.listdir(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("name", ["run.json", "quarantine.json"])
def test_a_document_that_is_a_link_is_not_read_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(AccessError, match=f"{name}: cannot be read"):
        open_results(tmp_path / "out").documents.read(name)


def test_a_document_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(TransientError, match=r"run\.json: cannot be read: .*no regular file"):
        open_results(tmp_path).documents.read("run.json")


# Files in the way


@pytest.mark.parametrize("name", ["a", ".a.partial", ".a.former"])
def test_a_file_in_place_of_a_folder_of_results_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for write in (publish, lambda folder: recover_report(folder, "k")):
        with pytest.raises(AccessError, match=r"is in the way of a folder of results; move it"):
            write(tmp_path / "a")
        assert tree(tmp_path) == {name: "mine"}


def test_a_file_in_the_way_is_refused_before_any_work(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("mine")
    scenes = [make_scene(name=f"{name}.tif") for name in "ab"]
    code, _, stderr = call("segment", *scenes, "--model", model, "--out", out, *FAST)
    assert code == 1
    assert "is in the way of a folder of results" in stderr.replace("\n", " ")
    assert (out / "a").read_text() == "mine"
    assert sorted(os.listdir(out)) == ["a", "b", "collection.json", "run.json"]


# Folders of other users


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on this process has another user's number, and every folder so far is foreign."""

    def change() -> None:
        monkeypatch.setattr(os, "geteuid", lambda: FOREIGN)
        monkeypatch.setattr(folders, "_owner_of_new_files", lambda _: FOREIGN)

    return change


@pytest.mark.parametrize("name", ["a", ".a.partial", ".a.former"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, name: str, foreign: Callable[[], None]) -> None:
    plant(tmp_path / name)
    before = tree(tmp_path)
    foreign()
    with pytest.raises(AccessError, match=r"belongs to another user, number \d+"):
        publish(tmp_path / "a")
    kept = {file: text for file, text in tree(tmp_path).items() if not file.startswith(".a.partial/")}
    assert {**before, **kept} == before
    assert (tmp_path / name / "thesis.txt").is_file()


def test_a_disk_that_shows_all_files_as_one_users_is_no_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network disks do that map every user to one."""
    publish(tmp_path / "a", "old")
    monkeypatch.setattr(os, "geteuid", lambda: FOREIGN)
    publish(tmp_path / "a")
    assert tree(tmp_path / "a") == {"mask.tif": "new"}


def test_a_private_folder_that_others_made_or_linked_is_refused(tmp_path: Path, foreign: Callable[[], None]) -> None:
    plant(tmp_path / "victim")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(AccessError, match="is a symbolic link"):
        private_folder("link", parent=tmp_path)
    (tmp_path / "open").mkdir(mode=0o777)
    assert private_folder("open", parent=tmp_path).stat().st_mode & 0o777 == 0o700
    foreign()
    with pytest.raises(AccessError, match="belongs to another user"):
        private_folder("open", parent=tmp_path)


# Reports and records that were tampered with

REPORT = {
    "scene": "a",
    "location": "a.tif",
    "status": "done",
    "content_key": "k",
    "outputs": {"mask": "mask.tif"},
}
BAD_REPORTS = [
    {"outputs": {"preview": "../../secret"}},
    {"outputs": {"preview": "/etc/passwd"}},
    {"outputs": {"mask": "mask.tif", "extra": "mask.tif"}},
    {"outputs": {"mask": "polygons.gpkg"}},
    {"outputs": {"mask": ["mask.tif"]}},
    {"outputs": "mask.tif"},
    {"scene": "../victim"},
    {"scene": "b"},
    {"status": "dead"},
    {"digests": {"../secret": "ab"}},
    {"sizes": {"mask.tif": -1}},
    {"sizes": {"mask.tif": "3"}},
    {"sizes": {"/etc/passwd": 3}},
    {"date": "\x1b[2J"},
    {"pixels": 10**400},
    {"polygons": -1},
    {"settings": []},
    {"reason": {}},
    {"area_m2": {"roof": "many"}},
]


@pytest.mark.parametrize("change", BAD_REPORTS, ids=str)
def test_a_report_that_was_tampered_with_proves_no_result(tmp_path: Path, change: dict[str, object]) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "mask.tif").touch()
    (tmp_path / "secret").touch()
    (folder / "report.json").write_text(json.dumps(REPORT))
    assert finished_report(folder, "k") is not None
    (folder / "report.json").write_text(json.dumps(REPORT | change))
    assert read_report_file(folder / "report.json", "a") is None
    assert finished_report(folder, "k") is None


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"scene": ' * 50_000, b"\xff\xfe", b"1" * 6000, b"null"])
def test_a_report_that_is_no_report_is_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    assert read_report_file(tmp_path / "report.json") is None


def test_outputs_that_are_links_or_pipes_are_missing(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "secret").touch()
    (folder / "mask.tif").symlink_to(tmp_path / "secret")
    assert finished_report(folder, "k") is None
    (folder / "mask.tif").unlink()
    os.mkfifo(folder / "mask.tif")
    assert finished_report(folder, "k") is None
    (folder / "report.json").unlink()
    os.mkfifo(folder / "report.json")
    assert finished_report(folder, "k") is None


def test_a_record_verifies_only_regular_files_of_its_work_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "result").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    records = StageRecords(work)
    for name in ("../secret", str(tmp_path / "secret"), "result/../../secret"):
        _tamper(records, work, {name: "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"})
        assert (records.find("mask", "k"), records.digests()) == (None, {})
    for name in ("link", "pipe"):
        _tamper(records, work, {f"result/{name}": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"})
        assert records.find("mask", "k") is None
        if name == "link":
            (work / "result" / name).symlink_to(tmp_path / "secret")
        else:
            os.mkfifo(work / "result" / name)
        assert records.find("mask", "k") is None
    records.remove_unrecorded()
    assert (tmp_path / "secret").read_text() == "x"


def _tamper(records: StageRecords, work: Path, files: dict[str, str]) -> None:
    """A record whose own digest is right: whoever can write it can compute that."""
    from pipeline.storage import sha256_of_json

    records.record("mask", "k", {})
    content = {"key": "k", "facts": {}, "files": files}
    (work / "stages" / "mask.json").write_text(json.dumps({"sha256": sha256_of_json(content), **content}))


@pytest.mark.parametrize("content", ["[" * 50_000, "{}", "[]", '{"sha256": 1, "files": []}'])
def test_a_record_that_is_no_record_is_none(tmp_path: Path, content: str) -> None:
    records = StageRecords(tmp_path)
    records.record("mask", "k", {})
    (tmp_path / "stages" / "mask.json").write_text(content)
    assert (records.find("mask", "k"), records.digests()) == (None, {})


def test_every_refusal_is_an_error_of_ours() -> None:
    assert issubclass(AccessError, ScenemillError)


# Readers of results


def test_a_thumbnail_opens_nothing_but_a_png_of_the_result(tmp_path: Path) -> None:
    """L6 of the review: a report could name any picture, which then was on a page of the Prefect server."""
    from PIL import Image

    from flows.artifact_scene import scene_markdown, thumbnail
    from pipeline.results import OUTPUTS, OutputFiles, SceneReport

    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert thumbnail(picture) is not None
    (tmp_path / "link.png").symlink_to(picture)
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "jpeg.png", "JPEG")
    (tmp_path / "torn.png").write_bytes(picture.read_bytes()[:40])
    header = bytearray(picture.read_bytes())
    header[16:24] = (2**30).to_bytes(4) * 2  # a bomb: width and height of 2**30
    (tmp_path / "bomb.png").write_bytes(header)
    for name in ("link", "pipe", "jpeg", "torn", "bomb", "absent"):
        assert thumbnail(tmp_path / f"{name}.png") is None, name

    with pytest.raises(ValueError, match="outputs are among"):
        OutputFiles(names={"preview": "../picture.png"})
    files = OutputFiles(names=OUTPUTS)
    report = SceneReport(scene="a", location="a", status="done", outputs=files, folder=str(tmp_path))
    assert "data:image" not in scene_markdown(report)


def test_an_evaluation_takes_no_threshold_from_a_report_that_is_invalid(tmp_path: Path) -> None:
    from pipeline.evaluation.result_files import threshold_of_run

    settings = {"settings": {"polygons": {"threshold": 0.25}}}
    report, mosaic = tmp_path / "report.json", tmp_path / "probability.tif"
    report.write_text(json.dumps(REPORT | settings))
    assert threshold_of_run(mosaic) == 0.25
    for change in (
        {"outputs": {"mask": "/etc/passwd"}},
        {"settings": {"polygons": []}},
        {"settings": {"polygons": {}}},
    ):
        report.write_text(json.dumps(REPORT | settings | change))
        assert threshold_of_run(mosaic) is None
    report.unlink()
    os.mkfifo(report)
    assert threshold_of_run(mosaic) is None


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../victim"},
        {"properties": []},
        {"properties": {}},
        {"bbox": ["a", "b", "c", "d"]},
        {"bbox": 5},
        {"bbox": [1, 2]},
    ],
    ids=str,
)
def test_an_item_that_was_tampered_with_is_left_out_of_the_collection(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str, change: dict[str, object]
) -> None:
    scenes, out = [make_scene(name=f"{name}.tif") for name in "ab"], tmp_path / "out"
    assert call("segment", *scenes, "--model", model, "--out", out, *FAST)[0] == 0
    item = json.loads((out / "a" / "item.json").read_text())
    (out / "a" / "item.json").write_text(json.dumps(item | change))
    write_collection(open_results(out))
    links = [each["href"] for each in json.loads((out / "collection.json").read_text())["links"]]
    assert "./b/item.json" in links
    assert "./a/item.json" not in links


# Records of regions


@pytest.mark.parametrize(
    "change",
    [
        {"cores": [[0, 0, 10, 10]]},
        {"cores": [[0, 0, 2000, 2000]]},
        {"cores": [[-5, 0, 60, 60]]},
        {"cores": [[0.5, 0, 60, 60]]},
        {"cores": [["a"]]},
        {"cores": 5},
        {"proof": {"precision": "float1", "change": 0, "note": ""}},
        {"proof": {}},
        {"threshold": "x"},
    ],
    ids=str,
)
def test_a_plan_of_regions_that_was_tampered_with_is_made_again(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str, change: dict[str, object]
) -> None:
    _continues_to_the_same_mask(make_scene(name="a.tif"), tmp_path, call, model, "regions.json", change)


@pytest.mark.parametrize(
    "change",
    [
        {"rasters": [[[0, 0, 50, 40], "../../../secret"]]},
        {"rasters": [[[0, 0, 50, 9999], "1a2b3c4d"]]},
        {"rasters": 5},
        {"glance": ["a", "b"]},
        {"glance": [10**400, 0]},
        {"counts": {}},
    ],
    ids=lambda change: str(change)[:50],
)
def test_a_region_that_was_tampered_with_is_run_again(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str, change: dict[str, object]
) -> None:
    _continues_to_the_same_mask(make_scene(name="a.tif"), tmp_path, call, model, "region-00000.json", change)


def _continues_to_the_same_mask(
    scene: Path, folder: Path, call: Call, model: str, record: str, change: dict[str, object]
) -> None:
    """Stop after a region, change a record, run again, and compare with a run that was not stopped."""
    out = folder / "out"
    stopped, whole = _stopped_after_a_region(scene, folder, call, model)
    _change_record(stopped / "stages" / record, change)
    assert call("segment", scene, "--model", model, "--out", out, *FAST)[0] == 0
    assert (out / "a" / "mask.tif").read_bytes() == whole


def _stopped_after_a_region(scene: Path, folder: Path, call: Call, model: str) -> tuple[Path, bytes]:
    """The work folder of a run that ended after its region, and the mask of a whole run."""
    import pipeline.segment

    assert call("segment", scene, "--model", model, "--out", folder / "whole", *FAST)[0] == 0
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise TransientError("the disk is full")

        patch.setattr(pipeline.segment, "record_inference", stop)
        assert call("segment", scene, "--model", model, "--out", folder / "out", *FAST)[0] == 1
    return folder / "out" / ".a.partial", (folder / "whole" / "a" / "mask.tif").read_bytes()


def _change_record(path: Path, change: dict[str, object]) -> None:
    """Change the facts of a record, with a digest that is right."""
    from pipeline.storage import sha256_of_json

    content = json.loads(path.read_text())
    del content["sha256"]
    content["facts"] |= change
    path.write_text(json.dumps({"sha256": sha256_of_json(content), **content}))
