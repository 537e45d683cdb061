"""A scene that failed for its data is left alone as long as it, the model and the settings stay as they are."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.catalog.entry import CatalogEntry
from pipeline.errors import DamagedSceneError, ModelError, SceneError, SettingsError, TransientError
from pipeline.run import quarantine as run_quarantine
from pipeline.run.quarantine import QUARANTINE, Quarantine, is_data_error
from pipeline.scene.bands import BandFile

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def opened(out: Path, inputs: str = "model and settings") -> Quarantine:
    return Quarantine(out, inputs=inputs, drivers=("GTiff",), now=lambda: NOON)


@pytest.fixture
def scene(tmp_path: Path) -> CatalogEntry:
    path = tmp_path / "b.tif"
    path.write_bytes(b"torn")
    return CatalogEntry(id="b", location=str(path))


@pytest.fixture
def out(tmp_path: Path, scene: CatalogEntry) -> Path:
    """A folder in whose quarantine the scene is."""
    quarantine = opened(tmp_path / "out")
    quarantine.begin(scene)
    quarantine.add(scene, DamagedSceneError("torn"))
    return tmp_path / "out"


def test_the_list_holds_what_failed_why_and_when(out: Path, scene: CatalogEntry) -> None:
    listed = json.loads((out / QUARANTINE).read_text())["scenes"]
    assert [(each["scene"], each["location"], each["kind"], each["reason"], each["since"]) for each in listed] == [
        ("b", scene.location, "DamagedSceneError", "torn", "2026-06-01T12:00:00+00:00")
    ]
    assert [*listed[0]["source"]] == ["b.tif"]


def test_an_unchanged_scene_is_held(out: Path, scene: CatalogEntry) -> None:
    held = opened(out).entry(scene)
    assert held is not None
    assert held.reason == "torn"


def test_another_scene_is_not_held(out: Path, scene: CatalogEntry) -> None:
    assert opened(out).entry(CatalogEntry(id="c", location=scene.location)) is None


def test_a_scene_of_another_size_or_time_is_tried_again(out: Path, scene: CatalogEntry) -> None:
    path = Path(scene.location)
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert opened(out).entry(scene) is None
    path.write_bytes(b"longer")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened(out).entry(scene) is None


@pytest.mark.parametrize("sidecar", ["b.tif.aux.xml", "b.tif.msk", "b.tfw"])
def test_a_scene_with_a_new_sidecar_is_tried_again(out: Path, scene: CatalogEntry, sidecar: str) -> None:
    Path(scene.location).with_name(sidecar).write_text("mended")
    assert opened(out).entry(scene) is None


def test_another_model_or_setting_tries_it_again(out: Path, scene: CatalogEntry) -> None:
    assert opened(out, "another model").entry(scene) is None


def test_a_scene_that_is_replaced_while_it_is_read_has_changed(tmp_path: Path, scene: CatalogEntry) -> None:
    quarantine = opened(tmp_path / "out")
    quarantine.begin(scene)
    Path(scene.location).write_bytes(b"now it is whole")
    quarantine.add(scene, DamagedSceneError("torn"))
    assert opened(tmp_path / "out").entry(scene) is None


def test_the_identity_of_a_scene_covers_all_files_and_its_catalog_metadata(tmp_path: Path) -> None:
    for folder in ("10m", "20m"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "b.tif").write_bytes(b"torn")
    files = tuple(
        BandFile(location=str(tmp_path / folder / "b.tif"), names=(folder,), nodata=(0,), scales=(1,), offsets=(0,))
        for folder in ("10m", "20m")
    )
    scene = CatalogEntry(id="b", location=files[0].location, files=files)
    quarantine = opened(tmp_path / "out")
    quarantine.begin(scene)
    quarantine.add(scene, DamagedSceneError("torn"))
    assert opened(tmp_path / "out").entry(scene) is not None
    renamed = replace(scene, files=(files[0], replace(files[1], names=("red",))))
    assert opened(tmp_path / "out").entry(renamed) is None
    (tmp_path / "20m" / "b.tif").write_bytes(b"whole now")
    assert opened(tmp_path / "out").entry(scene) is None


def test_a_result_frees_a_scene_and_leaves_the_others(out: Path, scene: CatalogEntry, tmp_path: Path) -> None:
    other = CatalogEntry(id="c", location=str(tmp_path / "c.tif"))
    opened(out).add(other, DamagedSceneError("torn too"))
    opened(out).remove(scene)
    assert [each["scene"] for each in json.loads((out / QUARANTINE).read_text())["scenes"]] == ["c"]


def test_a_missing_scene_is_never_held(tmp_path: Path) -> None:
    lost = CatalogEntry(id="lost", location=str(tmp_path / "lost.tif"))
    opened(tmp_path).add(lost, DamagedSceneError("gone"))
    assert opened(tmp_path).entry(lost) is None


def test_a_remote_scene_is_known_by_its_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, prints = CatalogEntry(id="far", location="s3://bucket/far.tif"), ["first"]
    monkeypatch.setattr(run_quarantine, "remote_fingerprint", lambda *_: prints[-1])
    quarantine = opened(tmp_path)
    quarantine.begin(scene)
    quarantine.add(scene, DamagedSceneError("torn"))
    assert opened(tmp_path).entry(scene) is not None
    prints.append("second")
    assert opened(tmp_path).entry(scene) is None


def test_a_remote_scene_that_cannot_be_reached_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> str:
        raise TransientError("503")

    scene = CatalogEntry(id="far", location="s3://bucket/far.tif")
    monkeypatch.setattr(run_quarantine, "remote_fingerprint", unreachable)
    opened(tmp_path).add(scene, DamagedSceneError("torn"))
    assert opened(tmp_path).entry(scene) is None


@pytest.mark.parametrize("content", ["", "[]", '{"scenes": 3}', '{"scenes": [{"scene": "a"}]}', "\x00"])
def test_a_foreign_list_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / QUARANTINE).write_text(content)
    with pytest.raises(SettingsError, match="repair it, or delete it"):
        opened(tmp_path)
    assert (tmp_path / QUARANTINE).read_text() == content


def test_only_data_errors_lead_to_quarantine() -> None:
    assert all(is_data_error(error) for error in (DamagedSceneError(), SceneError(), ModelError()))
    assert not any(is_data_error(error) for error in (TransientError(), SettingsError(), MemoryError()))
