"""Whether client and workers are of one version: what other code computes may differ, or mean something else."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from pipeline import __version__
from pipeline.errors import SettingsError
from pipeline.results import RESULT_FORMAT

PACKAGES = ("torch", "numpy", "rasterio", "shapely", "pyproj", "numba", "dask", "distributed")
"""Those whose versions may decide a result, or whether one arrives at all."""


@cache
def facts_of_code() -> dict[str, str]:
    """What must be the same wherever a part of one scene is computed."""
    import rasterio

    versions = {name: _version(name) for name in PACKAGES}
    return {
        "scenemill": __version__,
        "result format": str(RESULT_FORMAT),
        **versions,
        "GDAL": rasterio.__gdal_version__,
    }


def check_code(client: Mapping[str, str], worker: Mapping[str, str], *, where: str | None = None) -> None:
    """Raise SettingsError when a worker is not of the client's version.

    Args:
        client: its facts.
        worker: those of the worker.
        where: the worker's name; None: this process on this machine.
    """
    differing = [name for name in client if client[name] != worker.get(name)]
    if differing:
        there, here = (", ".join(f"{name} {facts.get(name)}" for name in differing) for facts in (worker, client))
        raise SettingsError(
            f"the worker {where or f'on {socket.gethostname()}'} has {there}, and the command {here}; install the same "
            "versions (constraints.txt) on all machines, and start the workers again"
        )


def _version(package: str) -> str:
    """Without the name of the build, which tells CPU from CUDA: a client needs no device."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "missing"
