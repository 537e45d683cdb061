"""A Prefect server on loopback and its worker, for benchmarks and tests; every process ends with them."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""What keeps Prefect from talking to anybody outside."""
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


@dataclass(kw_only=True)
class Server:
    """A server on its own port and database, which can be killed and restarted on both."""

    folder: Path
    """Database, logs and settings."""
    port: int
    """Free when it was looked for."""
    process: subprocess.Popen[bytes] | None = None
    """The server, None when it is not running."""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Workers that were started."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment of all processes."""

    @property
    def api(self) -> str:
        """The address that clients are given."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """Of the server, its worker and its clients."""
        return {
            **os.environ,
            **QUIET,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **self.more,
        }

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = self._spawn(command, "server.log")
        until(self.is_healthy, 300, "a healthy server")

    def kill(self) -> None:
        """End the server as a power cut would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def start_worker(self) -> None:
        """Start a worker of the pool `local-proc`."""
        self.workers.append(self._spawn([*PREFECT, "worker", "start", "--pool", "local-proc"], "worker.log"))

    def stop(self) -> None:
        """End every process, gently if it may."""
        for process in (*self.workers, *filter(None, [self.process])):
            end(process)

    def is_healthy(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self.ask("GET", "/health"))
        except OSError:
            return False

    def call(self, *arguments: str, code: int = 0) -> str:
        """Output of a Prefect command."""
        done = subprocess.run(
            [*PREFECT, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def ask(self, method: str, path: str, content: object = None, *, password: str | None = None) -> Any:
        """What the server answers; a busy SQLite makes it say 503 for a moment.

        Args:
            method: of HTTP.
            path: below the API's address.
            content: sent as JSON.
            password: `user:secret` that is sent, of a server that has one.
        """
        body = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        if password is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
        request = urllib.request.Request(self.api + path, data=body, headers=headers, method=method)
        for attempts_left in reversed(range(10)):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or not attempts_left:
                    raise
                time.sleep(0.5)
        return None

    def begin(self, deployment: str, parameters: Mapping[str, object]) -> str:
        """The id of a new run of a deployment, `flow/name`."""
        found = self.ask("GET", f"/deployments/name/{deployment}")
        run = self.ask("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def run(self, run_id: str) -> Any:
        """A run as it is now."""
        return self.ask("GET", f"/flow_runs/{run_id}")

    def finished(self, run_id: str, seconds: float = 300) -> Any:
        """A run that has come to its end."""
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        until(lambda: self.run(run_id)["state_type"] in ends, seconds, f"the end of {run_id}")
        return self.run(run_id)

    def artifacts(self, run_id: str) -> list[Any]:
        """What a run shows."""
        filters = {"flow_runs": {"id": {"any_": [run_id]}}}
        return list(self.ask("POST", "/artifacts/filter", filters))

    def _spawn(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as sink:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )


@contextmanager
def prefect_server(folder: Path, **more: str) -> Iterator[Server]:
    """Yield a running server."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder=folder, port=free_port(), more=more)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and all its children."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)
