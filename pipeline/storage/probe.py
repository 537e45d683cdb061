"""Probes of raster files before they are opened: existence, size, modification time, version and sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import DamagedSceneError, SceneError, TransientError
from pipeline.storage.files import NotRegularError, check_regular
from pipeline.storage.location import Location
from pipeline.storage.remote import remote_sidecars, remote_version


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Facts about an existing, readable file."""

    size_bytes: int | None = None
    """Size of a local file, None when remote."""
    modified_ns: int | None = None
    """Modification time of a local file, None when remote."""
    version: str | None = None
    """Version of a remote file, see `remote_version`; None if its server sends none, or local."""
    sidecars: Mapping[str, bytes | None] = field(default_factory=dict)
    """Suffixes of the files next to a remote one that may change how it is read, and their first bytes; None if they
    may exist, but cannot be read without GDAL's credentials."""


def probe_file(location: Location, *, sidecars: bool = True) -> FileFacts:
    """Check that a file exists and is readable, and get the facts about it; a server gets one request for each fact.

    Args:
        location: the file.
        sidecars: False = do not look for sidecars of a remote file.

    Raises:
        SceneError: it is missing, empty or no regular file, or a local file is not readable.
        AccessError: a store denies access, or there are no credentials.
        TransientError: disk, network or store fail.
    """
    if not location.is_remote:
        return _probe_local(location)
    version = remote_version(location)
    look = sidecars and location.ends_in_suffix
    return FileFacts(version=version, sidecars=remote_sidecars(location) if look else {})


def _probe_local(location: Location) -> FileFacts:
    path = Path(location.gdal_path)
    try:
        stat = check_regular(path)
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise SceneError(f"{location}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise SceneError(f"{location}: a folder, not a raster file") from error
    except PermissionError as error:
        raise SceneError(f"{location}: may not be read by this user; check the file's permissions") from error
    except NotRegularError as error:
        raise SceneError(f"{location}: {error.strerror}; name a raster file") from error
    except OSError as error:
        raise TransientError(f"{location}: cannot be read: {error.strerror}; check the path and the disk") from error
    if stat.st_size == 0:
        raise DamagedSceneError(f"{location}: an empty file (0 bytes); fetch it again")
    return FileFacts(size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)


def settle_rules(location: Location) -> Location:
    """The location with its own host among its rules, if the operator named it and it is private now; resolves it."""
    if not (location.is_remote and location.rules.is_named):
        return location
    return replace(location, rules=location.rules.settled(location.text))


def is_missing(location: Location) -> bool:
    """True when a local file does not exist; False for a remote one."""
    return not location.is_remote and not Path(location.gdal_path).exists()
