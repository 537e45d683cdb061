"""Atomic writes: a file is the old one or the whole new one at every moment, and no partial file stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import TransientError
from pipeline.storage.files import atomic_path, atomic_write, ensure_dir, remove_stale_partials, try_lock

ROOT = Path(__file__).parents[2]
KILLED_EVERYWHERE = """
import os, sys
from pathlib import Path
from pipeline.storage.files import atomic_write

folder, left = Path(sys.argv[1]), [0]
EVENTS = ("open", "os.rename", "os.remove")


def hook(event, arguments):
    if event in EVENTS and left[0] and "file" in str(arguments[0]):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)


sys.addaudithook(hook)
path = folder / "file"
for step in range(1, 50):
    path.write_text("old")
    child = os.fork()
    if child == 0:
        left[0] = step
        atomic_write(path, "new")
        os._exit(0)
    finished = os.waitpid(child, 0)[1] == 0
    assert path.read_text() in (("new",) if finished else ("old", "new")), path.read_text()
    if finished:
        break
print(step)
"""


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_what_is_written_replaces_what_was_there(content: bytes | str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("durable") / "file.bin"
    path.write_bytes(b"previous")
    atomic_write(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "[table].db"
    path.write_text("old")

    def write_and_fail() -> None:
        with atomic_path(path, ending=".db") as partial:
            assert partial.suffix == ".db"
            partial.write_text("half")
            partial.with_name(f"{partial.name}-journal").touch()
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_full_disk_is_named_with_its_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    atomic_write(path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(call, full)
        with pytest.raises(TransientError, match=r"file: cannot be written: .*No space left.*check the disk"):
            atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_a_transient_error_until_it_is_created(tmp_path: Path):
    path = tmp_path / "absent" / "below" / "file"
    with pytest.raises(TransientError, match="absent"):
        atomic_write(path, b"")
    ensure_dir(path.parent)
    ensure_dir(path.parent)
    atomic_write(path, b"")
    with pytest.raises(TransientError, match=r"file: cannot be made: .*check the disk"):
        ensure_dir(path)


def test_a_kill_between_any_two_steps_leaves_the_old_file_or_the_new_one(tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-c", KILLED_EVERYWHERE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 3


def test_partial_files_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path):
    script = (
        "import os, signal, sys; from pathlib import Path; from pipeline.storage.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1]), ending='.csv') as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path, other = tmp_path / "a*.csv", tmp_path / ".ab.csv.01234567.partial"
    path.write_text("old")
    other.touch()
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.iterdir())) == 3
    remove_stale_partials(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    assert path.read_text() == "old"


def test_writers_of_one_file_do_not_meet(tmp_path: Path):
    path = tmp_path / "file"
    with atomic_path(path) as one, atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_until_its_handle_closes(tmp_path: Path):
    one, other = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        assert [try_lock(one), try_lock(other)] == [True, False]
        os.close(one)
        assert try_lock(other)
    finally:
        os.close(other)
