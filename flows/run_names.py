"""Names of flow runs in Prefect's pages: their sources and their output folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefect.runtime import flow_run

from pipeline.text import printable, without_secrets


def run_name(sources: str) -> Callable[[], str]:
    """A function that names a run after the parameter `sources` and after `out`."""

    def name() -> str:
        parameters = flow_run.parameters
        return printable(f"{brief(parameters[sources])} into {parameters['out']}")

    return name


def brief(sources: Sequence[str]) -> str:
    """The first of some names, and how many more there are.

    >>> brief(["/data/a.tif"]), brief(["a.tif", "b.tif", "c.tif"]), brief([])
    ('/data/a.tif', 'a.tif and 2 more', 'nothing')
    """
    first, more = without_secrets(next(iter(sources), "nothing")), len(sources) - 1
    return f"{first} and {more} more" if more > 0 else first
