"""Work on a cluster of separate processes: the same bytes, whoever dies, and whatever workers do not see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeScene
from support.clusters import ROOT, RealCluster, real_cluster
from support.golden import contents
from support.models import write_checkpoint

from pipeline.config import SegmentSpec
from pipeline.distribute.connect import cluster
from pipeline.distribute.spec import DistributeSpec
from pipeline.errors import SettingsError, TransientError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.protocol import InferenceSpec
from pipeline.run.models import load_run_models
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

SPEC = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8),
    reading=ReadingSpec(threads=1),
    inference=InferenceSpec(device="cpu", precision="float32", threads=1),
    distribute=DistributeSpec(regions=4),
)


def on(address: str, **settings: Any) -> SegmentSpec:
    """The settings of a run on a cluster."""
    return replace(SPEC, distribute=replace(SPEC.distribute, scheduler=address, **settings))


@pytest.fixture
def scene(make_scene: MakeScene) -> Path:
    return make_scene(name="seen/town.tif", height=200)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return write_checkpoint(tmp_path / "mine" / "model.safetensors")


@pytest.mark.slow
def test_any_number_of_workers_gives_the_bytes_of_this_process(scene: Path, model: Path, tmp_path: Path) -> None:
    here = segment_scene(scene, tmp_path / "here", predictor=load_run_models([model], SPEC), spec=SPEC)
    with real_cluster() as processes:
        for workers in (1, 2, 4):
            processes.add(workers - len(processes.workers))
            spec = on(processes.address, regions=7)
            with cluster(spec.distribute) as client:
                predictor = load_run_models([model], spec)
                out = tmp_path / f"{workers}"
                there = segment_scene(scene, out, predictor=predictor, spec=spec, client=client)
            assert contents(there.folder) == contents(here.folder)
            assert there.inputs.content_key == here.inputs.content_key


def can_hide_folders() -> bool:
    done = subprocess.run(["unshare", "-m", "-r", "true"], check=False, capture_output=True)
    return done.returncode == 0


def hiding(folder: Path) -> list[str]:
    """The beginning of a command that sees an empty folder in the place of this one."""
    return ["unshare", "-m", "-r", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh"]


def test_workers_share_only_the_exchange_place_with_the_client(scene: Path, model: Path, tmp_path: Path) -> None:
    """Their temporary and working folders differ, and they see neither model nor results."""
    mine, exchange = tmp_path / "mine", tmp_path / "seen" / "exchange"
    here = segment_scene(scene, mine / "here", predictor=load_run_models([model], SPEC), spec=SPEC)
    for name in ("theirs", "elsewhere"):
        (tmp_path / name).mkdir()
    before = hiding(mine) if can_hide_folders() else []
    with real_cluster() as processes:
        processes.add(before=before, environment={"TMPDIR": str(tmp_path / "theirs")}, folder=tmp_path / "elsewhere")
        spec = on(processes.address, exchange=str(exchange))
        with cluster(spec.distribute) as client:
            predictor = load_run_models([model], spec)
            if not before:
                model.rename(tmp_path / "hidden")
            there = segment_scene(scene, mine / "there", predictor=predictor, spec=spec, client=client)
            assert contents(there.folder) == contents(here.folder)
            assert [path.name for path in exchange.iterdir()] == ["models"]
            if before:
                with pytest.raises(SettingsError, match=r"does not see this folder.*distribute\.exchange"):
                    segment_scene(scene, mine / "not", predictor=predictor, spec=on(processes.address), client=client)
                hidden = shutil.copy(scene, mine)
                with pytest.raises(SettingsError, match="does not see this scene; workers open scenes by the same"):
                    segment_scene(hidden, mine / "not", predictor=predictor, spec=spec, client=client)


@pytest.mark.slow
def test_a_killed_scheduler_costs_only_the_regions_in_progress(scene: Path, model: Path, tmp_path: Path) -> None:
    here = segment_scene(scene, tmp_path / "here", predictor=load_run_models([model], SPEC), spec=SPEC)
    with real_cluster(1) as processes:
        spec = on(processes.address)
        predictor = load_run_models([model], spec)

        def kill(stage: str, done: int, total: int) -> None:
            if done:
                processes.scheduler.kill()

        with (
            cluster(spec.distribute) as client,
            pytest.raises(
                TransientError, match=r"lost with its cluster.*start the scheduler and workers, and run again"
            ),
        ):
            segment_scene(scene, tmp_path / "out", predictor=predictor, spec=spec, client=client, watch=kill)
        assert not (tmp_path / "out" / "town").exists()
        for worker in processes.workers:
            assert worker.wait(60) is not None
    again = segment_scene(scene, tmp_path / "out", predictor=load_run_models([model], SPEC), spec=SPEC)
    assert again.statistics.reused[0].endswith(" of 4 regions")
    assert contents(again.folder) == contents(here.folder)


@pytest.mark.slow
def test_workers_of_another_version_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "pipeline", other / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    journal = other / "pipeline" / "results" / "publish.py"
    journal.write_text(journal.read_text().replace("RESULT_FORMAT = ", "RESULT_FORMAT = 9"))
    with real_cluster() as processes:
        processes.add(environment={"PYTHONPATH": str(other)}, folder=other)
        with (
            pytest.raises(SettingsError, match=r"the worker tcp://.* has result format 9.*install the same versions"),
            cluster(DistributeSpec(scheduler=processes.address)),
        ):
            pass


NETWORK = """
set -e
rm -f "$1/other"
ip link set lo up
unshare -n sh -c 'echo $$; exec sleep 600' > "$1/other" &
trap "kill $!" EXIT
while ! [ -s "$1/other" ]; do :; done
other=$(cat "$1/other")
ip link add here type veth peer name there netns "$other"
ip addr add 10.77.0.1/24 dev here
ip link set here up
nsenter -t "$other" -n sh -c 'ip addr add 10.77.0.2/24 dev there && ip link set there up && ip link set lo up'
shift
"$@" "$other"
"""
"""Runs a command in a network of its own, with the process id of another network that a wire joins to it."""


@pytest.mark.slow
def test_workers_in_another_network_give_the_same_bytes(scene: Path, model: Path, tmp_path: Path) -> None:
    inside = ["unshare", "-n", "-m", "-r", "sh", "-c", NETWORK, "sh", str(tmp_path)]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("networks cannot be made here")
    code = "import test_cluster, sys; test_cluster.across_networks(*sys.argv[1:])"
    done = subprocess.run(
        [*inside, sys.executable, "-c", code, str(scene), str(model), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def across_networks(scene: str, model: str, folder: str, other: str) -> None:
    """The body of the test above, in a network of its own: the scheduler is here, the worker over there."""
    here = segment_scene(scene, f"{folder}/here", predictor=load_run_models([model], SPEC), spec=SPEC)
    with ExitStack() as stack:
        processes = RealCluster(stack, "10.77.0.1").add(host="10.77.0.2", before=["nsenter", "-t", other, "-n"])
        spec = on(processes.address)
        with cluster(spec.distribute) as client:
            predictor = load_run_models([model], spec)
            there = segment_scene(scene, f"{folder}/there", predictor=predictor, spec=spec, client=client)
    assert contents(there.folder) == contents(here.folder)
