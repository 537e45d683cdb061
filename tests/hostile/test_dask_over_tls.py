"""Dask over TLS: with the certificates of the operations page a scene runs, without them nobody gets in."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from conftest import MakeScene
from distributed import Client
from support.clusters import ROOT, RealCluster, real_cluster
from support.golden import contents

from pipeline.config import SegmentSpec
from pipeline.distribute import DistributeSpec, cluster
from pipeline.errors import SettingsError, TransientError
from pipeline.inference import TilingSpec
from pipeline.model import InferenceSpec
from pipeline.run import load_run_models
from pipeline.segment import segment_scene

PAGE = (ROOT / "docs" / "guide" / "operations.md").read_text(encoding="utf-8")
SPEC = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8), inference=InferenceSpec(device="cpu", precision="float32", threads=1)
)

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl is not installed")


def make_certificates(folder: Path) -> Path:
    """Run the commands of the page in a folder, and write its settings of dask there."""
    folder.mkdir()
    (commands,) = re.findall(r"^```\n(openssl .*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-e", "-c", commands], cwd=folder, check=True, capture_output=True)
    (settings,) = re.findall(r"^```yaml\n(distributed:.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (folder / "dask.yaml").write_text(settings.replace("/etc/scenemill", str(folder)))
    return folder / "dask.yaml"


def settings_of(file: Path) -> Any:
    """Dask's whole configuration, with that of the file in it."""
    return dask.config.merge(dask.config.config, yaml.safe_load(file.read_text()))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def encrypted(certificates: Path) -> Iterator[RealCluster]:
    with real_cluster(1, protocol="tls", environment={"DASK_CONFIG": str(certificates)}) as processes:
        assert processes.address.startswith("tls://127.0.0.1:")
        yield processes


def test_a_scene_runs_over_tls_and_gives_the_bytes_of_this_process(
    encrypted: RealCluster, certificates: Path, make_scene: MakeScene, model: str, tmp_path: Path
) -> None:
    scene = make_scene(height=80)
    here = segment_scene(scene, tmp_path / "here", predictor=load_run_models([model], SPEC), spec=SPEC)
    spec = replace(SPEC, distribute=DistributeSpec(scheduler=encrypted.address, regions=2))
    with dask.config.set(settings_of(certificates)), cluster(spec.distribute) as client:
        assert client is not None
        assert {address.split(":")[0] for address in client.scheduler_info()["workers"]} == {"tls"}
        predictor = load_run_models([model], spec)
        there = segment_scene(scene, tmp_path / "there", predictor=predictor, spec=spec, client=client)
    assert contents(there.folder) == contents(here.folder)


def test_no_page_of_dask_is_shown_over_http(encrypted: RealCluster, certificates: Path) -> None:
    with dask.config.set(settings_of(certificates)), cluster(DistributeSpec(scheduler=encrypted.address)) as client:
        assert client is not None
        facts = client.scheduler_info()
        for process in (facts, *facts["workers"].values()):
            address = f"http://127.0.0.1:{process['services']['dashboard']}/info/main/workers.html"
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(address, timeout=5)
            refused.value.close()


def test_certificates_of_another_authority_are_refused(encrypted: RealCluster, tmp_path: Path) -> None:
    others = make_certificates(tmp_path / "theirs")
    with (
        dask.config.set(settings_of(others)),
        pytest.raises(
            TransientError, match=r"no dask scheduler with a worker at tls://.*TLS certificate does not match"
        ),
        cluster(DistributeSpec(scheduler=encrypted.address)),
    ):
        pass


def test_a_client_without_tls_is_refused(encrypted: RealCluster) -> None:
    with pytest.raises(OSError, match=r"reset by peer|closed|Timed out"):
        Client(encrypted.address.replace("tls://", "tcp://"), timeout=2, set_as_default=False)


def test_an_address_with_tls_needs_certificates(encrypted: RealCluster) -> None:
    with (
        pytest.raises(SettingsError, match=r"names no certificates; set distributed\.comm\.tls\.ca-file"),
        cluster(DistributeSpec(scheduler=encrypted.address)),
    ):
        pass


def test_a_certificate_that_is_missing_or_damaged_is_named(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for name in ("missing.pem", "damaged.pem"):
        with (
            dask.config.set(settings_of(certificates)),
            dask.config.set({"distributed.comm.tls.client.cert": str(tmp_path / name)}),
            pytest.raises(SettingsError, match=r"the certificates for tls://127.0.0.1:1 cannot be read"),
            cluster(DistributeSpec(scheduler="tls://127.0.0.1:1")),
        ):
            pass


def test_where_encryption_is_required_an_address_without_it_is_refused(certificates: Path) -> None:
    with (
        dask.config.set(settings_of(certificates)),
        pytest.raises(SettingsError, match=r"requires encryption .* begins with tls://"),
        cluster(DistributeSpec(scheduler="tcp://127.0.0.1:1")),
    ):
        pass
