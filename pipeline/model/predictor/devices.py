"""Devices: names of the settings to torch devices, and to one device per worker process.

Only `resolve_device` touches a device. A process that starts workers must not: opening one takes hundreds of megabytes.
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

    A single name is returned as it is, without checking that the device exists.

    Raises:
        SettingsError: several names of different types, a name twice, or a CUDA device that does not exist.

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
    """The device of each worker process of this machine; none if this process does the work.

    Args:
        devices: of `resolve_devices`.
        workers: the setting `distribute.workers`; 0: one process for each of several devices.

    Raises:
        SettingsError: several processes for one CUDA device, or a number of processes that is not that of the devices.

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
    device = _cpu_if_no_accelerator(devices[0])
    if device != "cpu" and workers > 1:
        raise SettingsError(
            f"distribute.workers = {workers} processes share the CPUs, not a device like {device!r}; "
            "set inference.device=cpu, or name several devices and leave distribute.workers out"
        )
    return (device,) * workers


def _cpu_if_no_accelerator(device: str) -> str:
    accelerated = torch.cuda.device_count() or torch.backends.mps.is_available()
    return "cpu" if device == "auto" and not accelerated else device


def resolve_device(device: str, *, key: str = "inference.device") -> torch.device:
    """`auto` -> CUDA, MPS or CPU; any other name is checked to exist.

    Args:
        device: name of the setting.
        key: the setting's key, for the message.

    Raises:
        SettingsError: an unknown or absent device.
    """
    if device == "auto":
        return torch.device(best_device())
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"{key} = {device!r} is not usable here: {reason}; use auto or cpu") from error
    return found


def best_device() -> str:
    """The device that `auto` means in this process."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_type(device: str) -> str:
    """The type of a device, which decides results: `cuda:1` -> `cuda`."""
    return device.partition(":")[0]


def device_environment(device: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables of a process that sees one device only, as the first of its type.

    Args:
        device: `cpu`, `cuda`, or `cuda:N`, as this process numbers it.
        environ: variables of this process.

    >>> device_environment("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,6"}), device_environment("cpu")
    ({'CUDA_VISIBLE_DEVICES': '6'}, {})
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return {}
    visible = [each.strip() for each in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return {"CUDA_VISIBLE_DEVICES": visible[int(index)] if visible else index}


def threads_per_process(threads: int, processes: int) -> int:
    """Threads of each of several processes on one machine, at least 1.

    >>> threads_per_process(16, 3), threads_per_process(2, 8)
    (5, 1)
    """
    return max(1, threads // processes)


def _check_several(names: Sequence[str]) -> None:
    setting = f"inference.device = {','.join(names)!r}"
    if {*names} == {"cpu"}:
        raise SettingsError(f"{setting}: for several processes on the CPU set distribute.workers={len(names)}")
    if not names or any(name != "cpu" and not name.removeprefix("cuda:").isdecimal() for name in names):
        raise SettingsError(f"{setting}: name several devices as cuda:0,cuda:1 (or {ALL_CUDA}), each with a number")
    if len({device_type(name) for name in names}) > 1:
        raise SettingsError(f"{setting}: devices of different types give different results; name devices of one type")
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{setting}: {name} is named twice, and would run two regions at once; name it once")
        if int(name.removeprefix("cuda:")) >= torch.cuda.device_count():
            raise SettingsError(f"{setting}: there is no {name} here, but {torch.cuda.device_count()} CUDA device(s)")
