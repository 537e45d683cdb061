"""Archive reader of exported networks: a zip file of plain bytes and JSON, never read by torch.

`torch.export.load` unpickles what such an archive calls sample inputs, tensor subclasses and custom objects,
evaluates its size expressions as Python, and compiles its names into source code. So the functions
below read only members of known names that hold raw numbers or JSON; all others are refused by name, or ignored.

    NAME/archive_format            "pt2"
    NAME/models/model.json         the graph                          see external_graph
    NAME/data/weights/weight_0     raw numbers, little endian         ... and model_weights_config.json
    NAME/data/constants/tensor_0   raw numbers, little endian         ... and model_constants_config.json
    NAME/data/extra/scenemill.json the model card and the SHA-256 of all of the above; `import_model` adds it
"""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from pipeline.errors import ModelError, TransientError
from pipeline.text import read_json

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
CARD = "data/extra/scenemill.json"
SAMPLE = "data/sample_inputs/model.pt"
FORMAT = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
"""Members with a fixed content."""

READ = re.compile(
    r"archive_format|archive_version|byteorder|models/model\.json|data/extra/scenemill\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
"""Members that are read."""
IGNORED = re.compile(
    r"\.data/(version|serialization_id)|\.format_version|\.storage_alignment|data/(sample_inputs|extra)/.+"
)
"""Members that are allowed and never read: sample inputs are pickles, and no network needs them to run."""
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
"""Members of raw numbers."""

MAX_MEMBERS = 100_000
"""Members of an archive; a large network has a few thousand."""
MAX_JSON_BYTES = 64 * 2**20
"""Bytes of a JSON member; the graph of a large network takes a few MiB."""
HOW_TO_EXPORT = (
    "write it with torch.export.save(torch.export.export(network.eval(), (tiles,), ...), 'network.pt2') of torch 2.11 "
    "or newer"
)


class Archive:
    """The members of an archive that may be read; opens the file for every read and keeps nothing open.

    Sizes are bounded by the file's own size, because compressed members are refused.
    """

    def __init__(self, path: Path) -> None:
        """Check the archive's directory."""
        self.path = path
        with self._open() as file:
            members = file.infolist()
        _check_members(members, path)
        roots = {member.filename.partition("/")[0] for member in members}
        if len(roots) != 1:
            raise ModelError(
                f"{path}: not an archive of torch.export.save, which has one folder inside; {HOW_TO_EXPORT}"
            )
        self._members = {member.filename.partition("/")[2]: member for member in members}
        self._check_names()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members that are read, sorted, without the folder they lie in."""
        return tuple(sorted(name for name in self._members if READ.fullmatch(name)))

    def size(self, name: str) -> int:
        """Bytes of a member."""
        if name not in self._members:
            raise ModelError(f"{self.path}: the member {name} is missing; {HOW_TO_EXPORT}")
        return self._members[name].file_size

    def read(self, name: str) -> bytearray:
        """The bytes of a member, checked against their CRC."""
        content = bytearray(self.size(name))
        try:
            with self._open() as file, file.open(self._members[name]) as member:
                _fill(member, content)
        except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
            # RuntimeError: marked as encrypted; ValueError: an offset before the file's start.
            raise ModelError(f"{self.path}: the member {name} is damaged: {error}; copy or export it again") from error
        except OSError as error:
            raise TransientError(f"{self.path}: cannot be read: {error}") from error
        return content

    def read_json(self, name: str) -> dict[str, object]:
        """A member that is a JSON object."""
        if self.size(name) > MAX_JSON_BYTES:
            raise ModelError(f"{self.path}: the member {name} is {self.size(name)} bytes, over {MAX_JSON_BYTES}")
        try:
            content = read_json(self.read(name))
        except ValueError as error:
            raise ModelError(f"{self.path}: the member {name} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ModelError(f"{self.path}: the member {name} must be a JSON object, not {type(content).__name__}")
        return content

    def digest(self, card: str) -> str:
        """`digest_of` the card and everything that is read, piece by piece."""
        return digest_of(card, ((name, self.read(name)) for name in self.names if name != CARD))

    def _open(self) -> zipfile.ZipFile:
        if not self.path.is_file():
            raise ModelError(f"{self.path}: there is no such file")
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise ModelError(f"{self.path}: not an archive of torch.export.save: {error}; {HOW_TO_EXPORT}") from error
        except OSError as error:
            raise TransientError(f"{self.path}: cannot be read: {error}") from error

    def _check_names(self) -> None:
        unknown = [name for name in self._members if not READ.fullmatch(name) and not IGNORED.fullmatch(name)]
        if unknown:
            raise ModelError(
                f"{self.path}: holds {unknown[0]!r}, which could run code or is not known, so it is not loaded; "
                f"only the graph and plain tensors of one network are. {HOW_TO_EXPORT.capitalize()}"
            )
        for name, content in FORMAT.items():
            if self.size(name) != len(content) or self.read(name) != content:
                raise ModelError(f"{self.path}: {name} is not {content.decode()!r}; {HOW_TO_EXPORT}")


def digest_of(card: str, members: Iterable[tuple[str, bytes | bytearray]]) -> str:
    """SHA-256 over a card and the name, size and bytes of each member, which come sorted by name."""
    digest = hashlib.sha256(card.encode())
    for name, content in members:
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def write_archive(file: IO[bytes], members: Mapping[str, bytes | bytearray]) -> None:
    """Write members, uncompressed and in the order of their names, so that equal content gives equal files."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(f"model/{name}", (1980, 1, 1, 0, 0, 0)), bytes(members[name]))


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuse what two readers could read differently, and what unpacks to more than the file holds."""
    names = [member.filename for member in members]
    if any(name.endswith(("/data.pkl", "/constants.pkl")) for name in names):
        raise ModelError(f"{path}: a PyTorch pickle or TorchScript archive, which is never loaded; {HOW_TO_EXPORT}")
    if any("serialized_exported_program" in name for name in names):
        raise ModelError(f"{path}: exported with a torch before 2.9, in a format that pickles weights; {HOW_TO_EXPORT}")
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise ModelError(f"{path}: holds over {MAX_MEMBERS} members, or one name twice, so it is not loaded")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ModelError(f"{path}: the member {member.filename} is compressed, which torch.export.save never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ModelError(f"{path}: the members claim more bytes than the file has, so it is not loaded")


def _fill(member: IO[bytes], content: bytearray) -> None:
    view = memoryview(content)
    while view:
        count = member.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("it ends early")
        view = view[count:]
    if member.read(1):
        raise EOFError("it is longer than it says")
