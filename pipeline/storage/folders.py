"""Folder ownership and symbolic links: checks before anything in a folder is deleted, moved or written.

Whoever may write in a shared folder can place a link there that leads elsewhere, or a folder that they own. Such a
folder is refused: no link at its place is followed, and its owner must be the user of this process. Folders above it,
such as the one that `--out` names, are the operator's own choice and may be links.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import AccessError
from pipeline.storage.files import disk_error


def own_folder(folder: Path) -> bool:
    """Whether a folder exists, after checks that it is a folder, no link, and of this user.

    Raises:
        AccessError: it is a link, no folder, or another user's.
    """
    if not real_folder(folder):
        return False
    try:
        _check_owner(folder, os.lstat(folder))
    except FileNotFoundError:
        return False
    return True


def real_folder(folder: Path) -> bool:
    """Whether a folder exists, after checks that it is a folder and no link.

    Raises:
        AccessError: it is a link, or no folder.
    """
    try:
        mode = os.lstat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise disk_error(f"{folder}: cannot be read", error) from error
    if stat.S_ISLNK(mode):
        raise AccessError(
            f"{folder}: is a symbolic link to {os.readlink(folder)}; links are not followed there, since work moves "
            "and deletes files in it: replace it by a folder, or remove the link and name the other place with --out"
        )
    if not stat.S_ISDIR(mode):
        raise AccessError(f"{folder}: is in the way of a folder of results; move it or delete it, and run again")
    return True


def open_own_folder(folder: Path) -> int:
    """A handle of a folder, for its lock; the caller closes it.

    Raises:
        AccessError: it is a link, no folder, or another user's.
        FileNotFoundError: it does not exist.
    """
    real_folder(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_owner(folder, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_opened(handle: int, path: Path) -> bool:
    """Whether a path still names the opened file or folder itself, not a link to it."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_file(path: Path) -> bool:
    """Whether a path names a regular file, not a link to one, a folder, a pipe or a device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def private_folder(name: str = "", *, parent: Path | None = None) -> Path:
    """A folder that only this user may enter; created if it is missing.

    Args:
        name: of the folder, below the user's own; empty: the user's own folder.
        parent: its parent; None: the user's folder in the system's temporary one, where any user may create any name.

    Raises:
        AccessError: it is a link, no folder, or another user's.
        TransientError: the disk fails.
    """
    if parent is None:
        own = _private(Path(tempfile.gettempdir()) / f"scenemill-{os.geteuid()}")
        return _private(own / name) if name else own
    return _private(parent / name)


def _private(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        handle = open_own_folder(folder)
        try:
            if stat.S_IMODE(os.fstat(handle).st_mode) != 0o700:
                os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
    except OSError as error:
        raise disk_error(f"{folder}: cannot be made", error) from error
    return folder


def _check_owner(folder: Path, facts: os.stat_result) -> None:
    if facts.st_uid != os.geteuid() and facts.st_uid != _owner_of_new_files(folder.parent):
        raise AccessError(
            f"{folder}: belongs to another user, number {facts.st_uid}; let them remove it, or use another folder "
            "(--out for results, run.work_dir or TMPDIR for temporary files)"
        )


def _owner_of_new_files(folder: Path) -> int | None:
    """The owner that a disk gives to files of this process: some network disks show everyone's as one user's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return None
