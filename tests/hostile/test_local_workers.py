"""Worker processes on the loopback interface: other users of the machine connect to none of them."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import pytest
from distributed import Client
from distributed.core import connect
from distributed.security import Security

from pipeline.distribute import DistributeSpec, cluster, device_workers
from pipeline.distribute.local_workers import _new_certificate

PREFIX = "distributed.comm.tls."


PAGES = ("/", "/health", "/metrics", "/info/main/workers.html", "/json/identity.json", "/json/counts.json")
"""What dask shows over HTTP without a dashboard."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of one worker process."""
    with device_workers(["cpu"], threads=1) as scheduler, cluster(DistributeSpec(scheduler=scheduler)) as client:
        assert client is not None
        assert client.submit(int, "7").result() == 7
        yield client


@pytest.fixture(scope="module")
def addresses(client: Client) -> tuple[str, ...]:
    """Addresses of scheduler, worker and nanny."""
    facts = client.scheduler_info()
    ((worker, of_worker),) = facts["workers"].items()
    return facts["address"], worker, of_worker["nanny"]


@contextmanager
def intruder(kind: str) -> Iterator[Security]:
    """What another user of the machine can have: no certificate, or one of their own."""
    own = _new_certificate() if kind == "own certificate" else dict.fromkeys(_new_certificate())
    with dask.config.set(own):
        yield Security()


@pytest.mark.parametrize("which", range(3), ids=["scheduler", "worker", "nanny"])
@pytest.mark.parametrize("kind", ["no certificate", "own certificate"])
def test_nobody_else_reaches_a_process_of_the_cluster(addresses: tuple[str, ...], which: int, kind: str) -> None:
    tls = kind == "own certificate"
    address = addresses[which] if tls else addresses[which].replace("tls://", "tcp://")

    async def talk() -> object:
        with intruder(kind) as security:
            comm = await connect(address, timeout=2, **security.get_connection_args("client"))
            await comm.write({"op": "identity"})
            return await comm.read()

    with pytest.raises(OSError, match=r"certificate|closed|reset|[Tt]imed out|in <T"):
        asyncio.run(talk())


def test_a_client_of_another_user_runs_no_code(addresses: tuple[str, ...]) -> None:
    with intruder("own certificate") as security, pytest.raises(OSError, match="TLS certificate does not match"):
        Client(addresses[0], security=security, timeout=2, set_as_default=False)


def test_nothing_listens_beyond_the_loopback_interface(addresses: tuple[str, ...]) -> None:
    assert {address.split("://")[1].split(":")[0] for address in addresses} == {"127.0.0.1"}
    for address in addresses:
        port = int(address.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=2).close()


@pytest.mark.parametrize("page", PAGES)
def test_no_page_shows_tasks_or_workers(client: Client, page: str) -> None:
    facts = client.scheduler_info()
    for process in (facts, *facts["workers"].values()):
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{process['services']['dashboard']}{page}", timeout=5)
        refused.value.close()


def test_certificates_stay_valid_when_the_clock_is_set_back() -> None:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(_new_certificate()[f"{PREFIX}ca-file"].encode())
    assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (2000, 9999)
    assert _new_certificate() != _new_certificate()
