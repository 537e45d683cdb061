"""Staging areas: files arrive complete or not at all, and the model by its hash."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MakeScene
from distributed import Client
from support.models import ROOF, brightness, write_checkpoint
from support.object_stores import Store

from pipeline.config import SegmentSpec
from pipeline.distribute import remote_predictor as distant
from pipeline.distribute import worker_tasks as distribute_tasks
from pipeline.distribute.cluster_executor import ClusterExecutor
from pipeline.distribute.executor import LocalExecutor
from pipeline.distribute.remote_predictor import RemotePredictor
from pipeline.distribute.spec import DistributeSpec
from pipeline.distribute.staging import staging_area
from pipeline.distribute.versions import check_versions, code_versions
from pipeline.errors import AccessError, ModelError, SettingsError, TransientError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.loading import LoadedPredictor
from pipeline.scene.describe import describe_scene
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene
from pipeline.storage.exchange import open_exchange


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A temporary folder of this machine that is no other's, and no model loaded yet; returns the staging area."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    distant._loaded.cache_clear()
    return tmp_path / "exchange"


@pytest.fixture(params=["folder", "store"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A staging area's address."""
    if request.param == "folder":
        return str(tmp_path / "exchange")
    return f"s3://{request.getfixturevalue('store').bucket}/exchange"


def test_files_arrive_complete_or_not_at_all(address: str, tmp_path: Path) -> None:
    root = open_exchange(address)
    place, sibling = root.child("town"), root.child("town-2")
    assert pickle.loads(pickle.dumps(place)) == place
    assert hash(place) != hash(sibling)
    (tmp_path / "a").write_bytes(b"levels")
    for each in (place, sibling):
        assert each.upload(tmp_path / "a", "regions/1.tif") == 6
    assert root.exists("town/regions/1.tif")
    assert not place.exists("regions/2.tif")
    place.fetch("regions/1.tif", tmp_path / "b", size=6)
    assert (tmp_path / "b").read_bytes() == b"levels"
    with pytest.raises(TransientError, match="6 of 7 bytes arrived"):
        place.fetch("regions/1.tif", tmp_path / "c", size=7)
    with pytest.raises(TransientError, match=r"2\.tif: (not visible on .*client and workers mount|nothing is there)"):
        place.fetch("regions/2.tif", tmp_path / "c")
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "b", "exchange"}
    place.delete()
    place.delete()
    assert not place.exists("regions/1.tif")
    assert sibling.exists("regions/1.tif")


def test_a_machine_without_the_staging_area_does_not_create_it(tmp_path: Path) -> None:
    place = open_exchange(str(tmp_path / "exchange")).child("town")
    (tmp_path / "exchange").rmdir()
    (tmp_path / "a").touch()
    with pytest.raises(TransientError, match="exchange: not visible on "):
        place.upload(tmp_path / "a", "a")
    assert not (tmp_path / "exchange").exists()


def test_staging_areas_of_different_results_are_separate(tmp_path: Path) -> None:
    spec = DistributeSpec(exchange=str(tmp_path / "exchange"))
    (tmp_path / "a").touch()
    with (
        staging_area(spec, tmp_path / "out" / ".town.partial") as one,
        staging_area(spec, tmp_path / "other" / ".town.partial") as other,
    ):
        assert one is not None
        assert other is not None
        one.upload(tmp_path / "a", "a")
        assert not other.exists("a")
        with staging_area(spec, tmp_path / "out" / ".town.partial"):  # not empty after a kill
            assert not one.exists("a")
    with staging_area(DistributeSpec(), tmp_path) as nothing:
        assert nothing is None
    places = [*(tmp_path / "exchange").iterdir()]
    with LocalExecutor(spec).workspace(tmp_path, lambda: None):
        assert [*(tmp_path / "exchange").iterdir()] == places


def test_a_link_in_place_of_a_staging_area_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("mine")
    area = open_exchange(str(tmp_path / "shared")).child("town")
    (tmp_path / "shared" / "town").symlink_to(tmp_path / "victim")
    (tmp_path / "file").touch()
    for write in (lambda: area.upload(tmp_path / "file", "thesis.txt"), area.delete):
        with pytest.raises(AccessError, match="is a symbolic link"):
            write()
    assert (tmp_path / "victim" / "thesis.txt").read_text() == "mine"


def test_a_model_downloaded_by_a_worker_lies_in_a_private_folder(apart: Path, tmp_path: Path) -> None:
    folder = distant._model_cache()
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(AccessError, match="is a symbolic link"):
        distant._model_cache()


def test_only_some_addresses_can_be_staging_areas() -> None:
    with pytest.raises(SettingsError, match=r"files cannot be exchanged through ftp://; name a folder, or s3://"):
        open_exchange("ftp://host/place")


def test_a_missing_store_is_reported_at_once(store: Store) -> None:
    with pytest.raises(TransientError, match="there is no bucket nowhere"):
        open_exchange("s3://nowhere/exchange")


def test_a_model_travels_by_its_hash(apart: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model.safetensors")
    sent = pickle.dumps(RemotePredictor(model, "cpu", precision="float32", exchange=open_exchange(str(apart))))
    write_checkpoint(model, seed=1)  # the worker has another model under this path
    there = pickle.loads(sent)
    assert isinstance(there, LoadedPredictor)
    (kept,) = (tmp_path / "own").rglob("*.safetensors")
    assert kept.stem == there.sha256
    distant._loaded.cache_clear()
    kept.write_bytes(b"damaged")
    assert pickle.loads(sent).sha256 == there.sha256
    assert pickle.loads(sent) is pickle.loads(sent)


def test_a_worker_without_the_model_is_named(apart: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model.safetensors")
    sent = pickle.dumps(RemotePredictor(model, "cpu", precision="float32"))
    model.unlink()
    with pytest.raises(SettingsError, match=r"the worker on .* does not have the model.*set distribute\.exchange"):
        pickle.loads(sent)


def test_a_scene_made_through_a_staging_area_is_the_same(
    address: str, threads: Client, apart: Path, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(name="town.tif", bands=1, descriptions=["red"], height=200, nodata=0)
    spec = SegmentSpec(tiling=TilingSpec(tile_size=32, overlap=8), reading=ReadingSpec(threads=1))
    there = replace(spec, distribute=DistributeSpec(regions=3, exchange=address))
    folders = [
        segment_scene(scene, tmp_path / name, predictor=brightness, card=ROOF, spec=each, client=client).folder
        for name, each, client in (("here", spec, None), ("there", there, threads))
    ]
    one, other = (
        {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "report.json"}
        for folder in folders
    )
    assert one == other
    assert [*(tmp_path / "own").iterdir()] == []


def test_a_scene_missing_on_a_worker_is_not_an_error_of_its_data(
    threads: Client, make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribute_tasks, "is_missing", lambda location: True)
    scene = make_scene(bands=1, descriptions=["red"])
    with pytest.raises(SettingsError, match="does not see this scene; workers open scenes by the same path") as caught:
        segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, client=threads)
    assert not isinstance(caught.value, ModelError)


def test_workers_of_other_versions_are_refused(
    threads: Client, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = code_versions()
    check_versions(facts, dict(facts))
    with pytest.raises(SettingsError, match=r"the worker tcp://a:1 has torch 9, and the command torch .*; install"):
        check_versions(facts, {**facts, "torch": "9"}, where="tcp://a:1")
    sent = distribute_tasks.dumps(max, 1, 2)
    assert distribute_tasks.call(sent) == 2
    monkeypatch.setattr(distribute_tasks, "code_versions", lambda: {**facts, "GDAL": "2.4"})
    with pytest.raises(SettingsError, match=r"has GDAL 2\.4"):
        distribute_tasks.call(sent)
    scene = describe_scene(make_scene())
    assert ClusterExecutor(threads).identity(brightness, scene) is None
