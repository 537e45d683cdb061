"""Machines that fail during a run: each failure is said clearly, no partial result is published, a rerun continues.

Full disks and kills are in `tests/laws/test_kills.py`; workers that are killed for their memory in `tests/distribute`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import MakeScene
from support.kill_process import Killer, Outcome, killer
from support.models import write_checkpoint
from support.object_stores import Store

import pipeline.segment
from pipeline.config import SegmentSpec, load_settings
from pipeline.errors import AccessError, SceneError, SettingsError, TransientError
from pipeline.model import load_predictor
from pipeline.results import OUTPUTS
from pipeline.results import lease as lease_module
from pipeline.results.results import open_results
from pipeline.run.record import RunRecord
from pipeline.run.scenes import check_out
from pipeline.scene.dates import resolve_date
from pipeline.segment import segment_scene
from pipeline.storage import ensure_dir

FAST = (
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
)
FUTURE_S = 4_102_444_800
"""The year 2100."""


class Machine:
    """Runs the command over two scenes in processes of their own."""

    def __init__(self, folder: Path, killer: Killer) -> None:
        self.folder, self.killer = folder, killer
        self.model = write_checkpoint(folder / "model.safetensors")
        self.scenes = [write_scene(folder / f"{name}.tif", seed) for seed, name in enumerate("ab")]
        assert self.segment("calm").code == 0
        self.calm = outputs(folder / "calm")

    def segment(self, out: str, *settings: object, **conditions: object) -> Outcome:
        command = ("segment", *self.scenes, "--model", self.model, "--out", self.folder / out, *FAST, *settings)
        return self.killer.run(*command, **conditions)  # type: ignore[arg-type]

    def finish(self, out: str) -> None:
        """Run again: the results are those of a run without failures."""
        again = self.segment(out)
        assert again.code == 0, again.output
        assert outputs(self.folder / out) == self.calm
        shutil.rmtree(self.folder / out)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with killer() as each:
        yield Machine(tmp_path_factory.mktemp("machine"), each)


def write_scene(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(1, 255, (3, 60, 60), np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=60, width=60, dtype="uint8", crs="EPSG:32633",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return path


def outputs(out: Path) -> dict[str, bytes]:
    """The outputs of both scenes, of visible folders only."""
    paths = [out / scene / name for scene in "ab" for name in OUTPUTS.values()]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths if path.is_file()}


def check_refusal(refused: Outcome, *words: str, code: int = 1) -> None:
    text = " ".join(refused.output.split())
    assert refused.code == code, text
    assert all(word in text for word in words), text
    assert "Traceback" not in text
    assert "unexpected" not in text


# A disk that may only be read


@pytest.fixture
def read_only(machine: Machine) -> Iterator[Callable[[Path], None]]:
    """Folders that only their owner may write, and that have another owner where root runs the tests."""
    changed: list[Path] = []

    def change(folder: Path) -> None:
        changed.append(folder)
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)

    yield change
    for folder in filter(Path.exists, changed):
        restore(folder)


def restore(folder: Path) -> None:
    if os.geteuid() == 0:
        os.chown(folder, 0, 0)
    folder.chmod(0o755)


def test_a_folder_of_another_user_is_refused_before_any_work(
    machine: Machine, read_only: Callable[[Path], None]
) -> None:
    (machine.folder / "read").mkdir()
    read_only(machine.folder / "read")
    for out in ("read", "read/below/it"):
        refused = machine.segment(out, ordinary=True)
        check_refusal(refused, "results cannot be written, since", "may not be written by this user", code=2)
    assert [*(machine.folder / "read").iterdir()] == []


def test_one_scene_that_may_not_be_replaced_fails_at_once_and_the_other_is_processed(
    machine: Machine, read_only: Callable[[Path], None]
) -> None:
    assert machine.segment("mixed").code == 0
    out = machine.folder / "mixed"
    shutil.rmtree(out / "b")
    (out / ".a.partial").mkdir()
    read_only(out / ".a.partial")
    refused = machine.segment("mixed", "--set", "polygons.min_area_m2=3", ordinary=True)
    check_refusal(refused, "failed a: ", "done b: ")
    assert "trying again" not in refused.output  # permissions do not mend themselves
    assert {name: content for name, content in outputs(out).items() if name.startswith("a/")} == {
        name: content for name, content in machine.calm.items() if name.startswith("a/")
    }
    assert not (out / "quarantine.json").exists()
    restore(out / ".a.partial")
    machine.finish("mixed")


@pytest.mark.parametrize("code", ["EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP"])
def test_errors_that_no_retry_mends_are_not_retried(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(*_: object, **__: object) -> None:
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(AccessError, match="cannot be made"):
        ensure_dir(tmp_path / "x")


def test_a_name_that_is_too_long_is_not_retried(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"cannot be made: .*too long"):
        ensure_dir(tmp_path / ("x" * 300))


# A full disk


@pytest.mark.parametrize("options", [("--overwrite",), ("--layer", "roofs")])
def test_a_full_disk_leaves_the_file_of_a_user_as_it_was(machine: Machine, options: tuple[str, ...]) -> None:
    """Full disks during a run are in `test_kills`; here one during `vectorize` into an existing file."""
    frame = geopandas.GeoDataFrame({"owner": ["me"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:3857")
    path = machine.folder / "mine.gpkg"
    pyogrio.write_dataframe(frame, path, layer="roads")
    before, names = path.read_bytes(), {each.name for each in machine.folder.iterdir()}
    command = ("vectorize", machine.folder / "calm" / "a" / "probability.tif", "--out", path, *options)
    refused = machine.killer.run(*command, file_bytes=40_000)
    check_refusal(refused, "disk")
    assert path.read_bytes() == before
    assert {each.name for each in machine.folder.iterdir()} == names
    assert machine.killer.run(*command).code == 0


# Too few handles


def test_a_run_with_too_few_handles_is_refused_before_any_work(machine: Machine) -> None:
    refused = machine.segment("few", limits={"RLIMIT_NOFILE": 20})
    check_refusal(refused, "this process may open 20 files, and a run needs at least 64", "ulimit -n", code=2)
    assert not (machine.folder / "few").exists()


@contextmanager
def free_handles(count: int) -> Iterator[None]:
    """This process may open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
            if len(held) == 1:
                resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 64, hard))
        for handle in held[len(held) - count :]:
            os.close(handle)
        del held[len(held) - count :]
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for handle in held:
            os.close(handle)


def test_handles_that_run_out_are_no_fault_of_the_scene(make_scene: MakeScene, tmp_path: Path) -> None:
    """It is not called damaged, or quarantined, and its bytes are the same when there are handles again."""
    scene, spec = make_scene(name="a.tif"), settings()
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    whole = segment_scene(scene, tmp_path / "calm", predictor=predictor, spec=spec)
    for count in range(14):
        with free_handles(count):
            try:
                segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec)
            except SceneError as error:
                pytest.fail(f"with {count} handles: {type(error).__name__}: {error}")
            except (TransientError, SettingsError):
                pass
    report = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec)
    for name in OUTPUTS.values():
        assert Path(report.folder, name).read_bytes() == Path(whole.folder, name).read_bytes(), name


def settings() -> SegmentSpec:
    return load_settings(SegmentSpec, None, FAST[1::2])


# No memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("cannot allocate 5 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_lack_of_memory_after_inference_keeps_the_mosaic(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    scene, spec = make_scene(name="a.tif"), settings()
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.segment, "vectorize_mosaic", fail)
        with pytest.raises(TransientError, match=r"a: no memory: .*completed stages are kept"):
            segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec)
    assert not (tmp_path / "out" / "a").exists()
    report = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec)
    assert {"mosaic", "mask"} <= {*report.statistics.reused}


# A clock that was set back


def test_files_of_the_future_make_no_difference(machine: Machine) -> None:
    assert machine.segment("future").code == 0
    out = machine.folder / "future"
    before = {path: path.stat().st_mtime_ns for path in machine.scenes}
    for path in [*out.rglob("*"), *machine.scenes]:
        os.utime(path, (FUTURE_S, FUTURE_S))
    again = machine.segment("future")
    assert again.code == 0, again.output
    (a, b) = json.loads((out / "run.json").read_text())["scenes"]
    # The time of a scene's file is part of its identity, whatever it is.
    assert (a["status"], b["status"]) == ("done", "done")
    assert {scene["reason"] for scene in (a, b)} == {None}
    assert machine.segment("future").output.count("skipped") == 2
    report = json.loads((out / "a" / "report.json").read_text())
    assert report["date_of"] == "processing"
    assert report["date"] < "2100"
    for path, modified_ns in before.items():
        os.utime(path, ns=(modified_ns, modified_ns))
    machine.finish("future")


@pytest.mark.parametrize("seconds", [2**40, FUTURE_S, -(2**40)])
def test_a_file_of_an_impossible_time_has_the_date_of_its_processing(seconds: int) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert resolve_date(None, seconds * 10**9, now=now).text == "2026-11-21T00:00:00Z"
    assert resolve_date(None, 0, now=now).text == "1970-01-01T00:00:00Z"


def test_a_record_is_written_by_a_clock_that_goes_backwards(tmp_path: Path) -> None:
    moments = iter([datetime(2026, 11, 21, tzinfo=UTC) - timedelta(days=day) for day in range(10)])
    documents = open_results(tmp_path / "out").documents
    record = RunRecord(documents, now=lambda: next(moments), clock=iter([5.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]).__next__)
    record.write([], ended=False)
    record.write([], ended=True)
    (run,) = json.loads((tmp_path / "out" / "run.json").read_text())["runs"]
    assert run["state"] == "ended"


def test_a_lock_from_the_future_of_a_store_expires(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder would have renewed it by the present clock; one written a minute ahead is respected."""
    one, two = (open_results(f"s3://{store.bucket}/out", tmp_path / name) for name in ("one", "two"))
    age_s = [-60.0]

    class Shifted(lease_module.StoredDocument):
        def __init__(self, **facts: object) -> None:
            super().__init__(**{**facts, "age_s": age_s[0]})  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.storage.s3_folder.StoredDocument", Shifted)

    def publish(folder: Path) -> None:
        (folder / "report.json").write_text('{"scene": "town"}')

    def refused() -> None:
        with one.scenes.publishing("town") as work, two.scenes.publishing("town"):
            publish(work)

    with pytest.raises(TransientError, match="another run is writing"):
        refused()

    def overtaken() -> None:
        with one.scenes.publishing("town") as work:
            publish(work)
            age_s[0] = -86_400.0
            with two.scenes.publishing("town") as other:
                publish(other)

    with pytest.raises(TransientError, match="another run has taken over the lock"):
        overtaken()


def test_the_folder_of_results_is_checked_without_writing(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "folder")
    assert [*tmp_path.iterdir()] == []
