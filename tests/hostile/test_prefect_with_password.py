"""A Prefect server with a password: without it, or with another one, nobody reads or starts anything."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeScene

from benchmarks.prefect_server import ROOT, Server, prefect_server

pytestmark = pytest.mark.slow
SECRET = "mill:a-long-secret"
OPEN = ("/health", "/ready")
"""What a server tells everybody: that it is alive."""
OPTIONS = ("--set", "inference.device=cpu", "--set", "inference.precision=float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose password its clients do not have; each test gives them one."""
    with prefect_server(tmp_path_factory.mktemp("server"), PREFECT_SERVER_API_AUTH_STRING=SECRET) as running:
        yield running


def run_flow(server: Server, password: str | None, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of the flow's command."""
    environment = {**server.environment, **({} if password is None else {"PREFECT_API_AUTH_STRING": password})}
    command = [sys.executable, "-m", "flows.segment", *map(str, arguments), *OPTIONS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("password", [None, "mill:another", "a-long-secret"])
def test_requests_without_the_password_are_refused(server: Server, password: str | None) -> None:
    for path in ("/flows/filter", "/flow_runs/filter", "/work_pools/filter", "/block_documents/filter"):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            server.ask("POST", path, {}, password=password)
        refused.value.close()
    assert server.ask("POST", "/flows/filter", {}, password=SECRET) == []


def test_only_whether_the_server_is_alive_is_told_without_password(server: Server) -> None:
    assert all(server.ask("GET", path) for path in OPEN)
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        server.ask("GET", "/admin/settings")
    refused.value.close()


@pytest.mark.parametrize("password", [None, "mill:another"])
def test_a_run_without_the_password_ends_at_once_and_says_what_to_set(
    server: Server, password: str | None, make_scene: MakeScene, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, errors = run_flow(server, password, make_scene(), "--model", model, "--out", out)
    assert code == 2
    assert "error: the Prefect server refuses this process (401); set PREFECT_API_AUTH_STRING" in errors
    assert "Traceback" not in errors
    assert not out.exists()


def test_commands_and_runs_with_the_password_work(
    server: Server, make_scene: MakeScene, model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, errors = run_flow(server, SECRET, make_scene(name="a.tif"), "--model", model, "--out", out)
    assert code == 0, errors
    assert (out / "a" / "report.json").is_file()
    assert SECRET not in errors
    (run,) = server.ask("POST", "/flow_runs/filter", {}, password=SECRET)
    assert run["state_type"] == "COMPLETED"
