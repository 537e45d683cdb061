"""Archives of exported networks: only the layout that torch writes is read, and its digest covers every member."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.exported_archive import CARD as CARD_OF_SMALL
from support.exported_archive import edited, pack, small_members, with_label

from pipeline.errors import ModelError
from pipeline.model.exported import archive as archives
from pipeline.model.exported.archive import CARD, FORMAT, GRAPH, Archive, digest_of, write_archive
from pipeline.model.exported.load import load_exported

MEMBERS: Mapping[str, bytes] = {**FORMAT, GRAPH: b"{}", "data/weights/weight_0": bytes(range(16))}


def write(path: Path, members: Mapping[str, bytes]) -> Path:
    with path.open("wb") as file:
        write_archive(file, members)
    return path


def test_an_archive_gives_back_its_members(tmp_path: Path) -> None:
    archive = Archive(write(tmp_path / "m.pt2", {**MEMBERS, CARD: b"{}"}))
    assert set(archive.names) == {*MEMBERS, CARD}
    assert all(archive.read(name) == content for name, content in MEMBERS.items())


@pytest.mark.parametrize("name", [*FORMAT])
@pytest.mark.parametrize("change", ["another text", "another length", "absent"])
def test_an_archive_of_another_format_is_refused(tmp_path: Path, name: str, change: str) -> None:
    members = dict(MEMBERS)
    if change == "absent":
        del members[name]
    else:
        members[name] = b"x" * (len(FORMAT[name]) + (change == "another length"))
    with pytest.raises(ModelError, match=rf"{name} is (not|missing)"):
        Archive(write(tmp_path / "m.pt2", members))


def test_an_archive_of_two_folders_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    write_archive(content, MEMBERS)
    with zipfile.ZipFile(content, "a", zipfile.ZIP_STORED) as file:
        file.writestr("other/archive_format", b"pt2")
    (tmp_path / "m.pt2").write_bytes(content.getvalue())
    with pytest.raises(ModelError, match="which has one folder inside"):
        Archive(tmp_path / "m.pt2")


def test_bytes_that_change_members_change_the_digest() -> None:
    """The same bytes in a row, divided otherwise, or under another name."""
    digests = {
        digest_of(card, members)
        for card, members in (
            ("card", [("a", b"12"), ("b", b"3")]),
            ("card", [("a", b"1"), ("b", b"23")]),
            ("card", [("a", b"12"), ("c", b"3")]),
            ("cards", [("a", b"12"), ("b", b"3")]),
            ("card", [("a", b"123")]),
        )
    }
    assert len(digests) == 5


def test_a_graph_larger_than_any_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_JSON_BYTES", 10)
    archive = Archive(write(tmp_path / "m.pt2", {**MEMBERS, GRAPH: b'{"a": 123456}'}))
    with pytest.raises(ModelError, match=r"models/model.json is 13 bytes, over 10"):
        archive.read_json(GRAPH)


def test_a_card_with_a_fitting_hash_must_be_the_one_that_an_import_writes(tmp_path: Path) -> None:
    """Files that were never imported: the export takes 64 x 64 px and one band."""

    def fixed(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][2:] = [{"as_int": 64}] * 2

    path = tmp_path / "m.pt2"
    for change, reason in (
        ({}, "does not fit the network"),
        ({"tile_size": 32}, "the export takes 64 px only"),
        ({"tile_size": 64, "bands": ["red", "green"]}, "the network takes 1 bands"),
    ):
        path.write_bytes(pack(with_label(edited(GRAPH, fixed), json.dumps(CARD_OF_SMALL | change))))
        with pytest.raises(ModelError, match=reason):
            load_exported(path)
    path.write_bytes(pack(with_label(edited(GRAPH, fixed), json.dumps(CARD_OF_SMALL | {"tile_size": 64}))))
    assert load_exported(path).card.tile_size == 64
    path.write_bytes(pack(with_label(small_members(), json.dumps(CARD_OF_SMALL))))
    assert load_exported(path).card.tile_size is None
