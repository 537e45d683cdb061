"""Version check between client and workers: other code may compute other results, or read another format."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from pipeline import __version__
from pipeline.errors import SettingsError
from pipeline.results import RESULT_FORMAT

PACKAGES = ("torch", "numpy", "rasterio", "shapely", "pyproj", "numba", "dask", "distributed")
"""Packages whose versions may change a result, or break its pickles."""


@cache
def code_versions() -> dict[str, str]:
    """Versions that must be equal in every process that computes a part of one scene."""
    import rasterio

    versions = {name: _version(name) for name in PACKAGES}
    return {
        "scenemill": __version__,
        "result format": str(RESULT_FORMAT),
        **versions,
        "GDAL": rasterio.__gdal_version__,
    }


def check_versions(client: Mapping[str, str], worker: Mapping[str, str], *, where: str | None = None) -> None:
    """Raise SettingsError when a worker's versions differ from the client's.

    Args:
        client: versions of the client.
        worker: versions of the worker.
        where: the worker's address; None: this process on this machine.
    """
    differing = [name for name in client if client[name] != worker.get(name)]
    if differing:
        theirs, ours = (", ".join(f"{name} {found.get(name)}" for name in differing) for found in (worker, client))
        raise SettingsError(
            f"the worker {where or f'on {socket.gethostname()}'} has {theirs}, and the command {ours}; install the "
            "same versions (constraints.txt) on all machines, and start the workers again"
        )


def _version(package: str) -> str:
    """Without the build tag (CPU or CUDA): a client needs no device."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "missing"
