"""A Prefect of our own for tests of flows: one server, in a temporary folder, for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.prefect_server import QUIET

os.environ.update(QUIET)  # before anything imports Prefect, which reads it then


@pytest.fixture(scope="session")
def ephemeral() -> Iterator[None]:
    """A Prefect that nobody set up; its start takes ten seconds, so the tests that need it run one after another."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share the server come last, so that it is not there while all others run."""
    items.sort(key=lambda item: "ephemeral" in getattr(item, "fixturenames", ()))
