"""Names of devices -> the devices that are meant, without touching them.

A process that starts workers must not open a device itself: that alone takes hundreds of megabytes there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from pipeline.errors import SettingsError

ALL_CUDA = "cuda:all"
"""The name of all CUDA devices together."""


def resolve_devices(device: str | Sequence[str]) -> tuple[str, ...]:
    """The devices of the setting `inference.device`: a name, names with commas between them, or a list of names.

    A single name is returned as it is; whether it exists is seen when it is used.

    Raises:
        SettingsError: several names that are not of one kind, one of them twice, or a CUDA device that is not there.

    >>> resolve_devices("auto"), resolve_devices(["cpu"])
    (('auto',), ('cpu',))
    """
    names = [name.strip() for name in (device.split(",") if isinstance(device, str) else device)]
    if names == [ALL_CUDA]:
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not names:
            raise SettingsError(f"inference.device = {ALL_CUDA!r}: there is no CUDA device here; use auto or cpu")
    if len(names) == 1:
        return (names[0],)
    _check_several(names)
    return tuple(names)


def resolve_worker_devices(devices: Sequence[str], workers: int) -> tuple[str, ...]:
    """The device of each worker process of this machine; none, where this process does the work.

    Args:
        devices: what `resolve_devices` returned.
        workers: processes asked for; 0: one for each of several devices.

    Raises:
        SettingsError: several processes are wanted for one CUDA device, or another number of them than of devices.

    >>> resolve_worker_devices(["cpu"], 0), resolve_worker_devices(["cpu"], 2)
    ((), ('cpu', 'cpu'))
    """
    if len(devices) > 1:
        if workers not in (0, len(devices)):
            raise SettingsError(
                f"distribute.workers = {workers}, but inference.device names {len(devices)} devices, and each of them "
                "gets one process; leave distribute.workers out"
            )
        return tuple(devices)
    if not workers:
        return ()
    device = _cpu_where_nothing_else(devices[0])
    if device != "cpu" and workers > 1:
        raise SettingsError(
            f"distribute.workers = {workers} processes share the CPUs, not a device like {device!r}; "
            "set inference.device=cpu, or name several devices and leave distribute.workers out"
        )
    return (device,) * workers


def _cpu_where_nothing_else(device: str) -> str:
    elsewhere = torch.cuda.device_count() or torch.backends.mps.is_available()
    return "cpu" if device == "auto" and not elsewhere else device


def best_device() -> str:
    """What `auto` means in this process."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_type(device: str) -> str:
    """The kind of a device, which decides results: `cuda:1` -> `cuda`."""
    return device.partition(":")[0]


def device_environment(device: str, surroundings: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a process that shall see one device only, and see it as the first of its kind.

    Args:
        device: `cpu`, `cuda`, or `cuda:N`, as this process numbers it.
        surroundings: this process's environment.

    >>> device_environment("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,6"}), device_environment("cpu")
    ({'CUDA_VISIBLE_DEVICES': '6'}, {})
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return {}
    visible = [each.strip() for each in surroundings.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return {"CUDA_VISIBLE_DEVICES": visible[int(index)] if visible else index}


def threads_per_process(threads: int, processes: int) -> int:
    """Threads of each of several processes on one machine, at least 1.

    >>> threads_per_process(16, 3), threads_per_process(2, 8)
    (5, 1)
    """
    return max(1, threads // processes)


def _check_several(names: Sequence[str]) -> None:
    place = f"inference.device = {','.join(names)!r}"
    if {*names} == {"cpu"}:
        raise SettingsError(f"{place}: for several processes on the CPU set distribute.workers={len(names)}")
    if not names or any(name != "cpu" and not name.removeprefix("cuda:").isdecimal() for name in names):
        raise SettingsError(f"{place}: several devices are named as cuda:0,cuda:1 (or {ALL_CUDA}), each with a number")
    if len({device_type(name) for name in names}) > 1:
        raise SettingsError(f"{place}: devices of different kinds give results that differ; name devices of one kind")
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{place}: {name} is there twice, and would run two regions at once; name it once")
        if int(name.removeprefix("cuda:")) >= torch.cuda.device_count():
            raise SettingsError(f"{place}: there is no {name} here, but {torch.cuda.device_count()} CUDA device(s)")
