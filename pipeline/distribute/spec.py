"""Settings of the dask cluster, local workers and staging area of a run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class DistributeSpec:
    """Where the work of a run is done; changes the time taken, never the result."""

    scheduler: str | None = None
    """Address of a dask scheduler, e.g. `tcp://10.0.0.5:8786`; None: no cluster but that of `workers`."""
    workers: int = 0
    """Worker processes that the run starts on this machine; 0: one for each of several devices, else none."""
    dask_cuda: bool = False
    """True: processes of CUDA devices are started by dask-cuda, each bound to the CPUs nearest to its device."""
    exchange: str | None = None
    """Folder or `s3://` address that client and workers reach, for files that travel; None: workers see the results."""
    regions: int = 0
    """Regions a scene is cut into; 0: one for 2^25 px here, and on a cluster one or two for each worker."""
    scenes: int = 0
    """Concurrent scenes; 0: one in this process, and on a cluster one more than its workers have threads."""

    def __post_init__(self) -> None:
        for key in ("workers", "regions", "scenes"):
            if getattr(self, key) < 0:
                raise SettingsError(f"{key} must be at least 0, not {getattr(self, key)}")
