"""Few words become a list of scenes, each once, each with a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.catalog.read import list_scenes
from pipeline.errors import SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.tif", "b.TIFF", "notes.dat", ".hidden.tif", "a.tif.msk", "a.tif.aux.xml", "sub/a.tif", "sub/c.tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def ids(*sources: str | Path) -> list[str]:
    return [entry.id for entry in list_scenes(sources)]


def test_a_folder_is_expanded_to_its_own_rasters(folder: Path) -> None:
    assert ids(folder) == ["a", "b"]


def test_a_glob_matches_recursively(folder: Path) -> None:
    assert ids(f"{folder}/sub/*.tif") == ["a", "c"]
    assert {entry.location for entry in list_scenes([f"{folder}/**/c.tif"])} == {str(folder / "sub" / "c.tif")}


def test_a_file_is_taken_whatever_it_is_called(folder: Path) -> None:
    assert ids(folder / "notes.dat") == ["notes"]
    odd = folder / "[1].tif"
    odd.touch()
    assert ids(odd) == ["_1_"]


def test_order_is_kept_and_a_scene_named_twice_runs_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert ids("b.TIFF", "a.tif", folder / "a.tif", "./a.tif", folder) == ["b", "a"]


def test_scenes_of_one_stem_are_called_by_their_folders_too(folder: Path) -> None:
    assert ids(folder / "a.tif", folder / "sub" / "a.tif", folder / "sub" / "c.tif") == [
        f"{folder.name}_a",
        "sub_a",
        "c",
    ]


def test_scenes_that_would_share_a_folder_are_refused(folder: Path) -> None:
    (folder / "A.tiff").touch()
    with pytest.raises(SettingsError, match=r"share one output folder, run them apart: .*a\.tif, .*A\.tiff"):
        list_scenes([folder / "a.tif", folder / "A.tiff"])


def test_addresses_are_passed_on(folder: Path) -> None:
    entries = list_scenes(["s3://bucket/x/T33.tif", "https://host/T34.tif?sig=1"])
    assert [(entry.id, entry.location) for entry in entries] == [
        ("T33", "s3://bucket/x/T33.tif"),
        ("T34", "https://host/T34.tif?sig=1"),
    ]


def test_an_address_of_another_scheme_is_refused() -> None:
    with pytest.raises(SettingsError, match="scheme file:// is not accepted"):
        list_scenes(["file:///etc/passwd"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.tif", "missing.tif: no such file or folder; check the path"),
        ("*.png", "matches no file; check the path"),
        ("empty", "no scene in this folder; looked for .tif"),
    ],
)
def test_a_source_without_matches_is_reported(folder: Path, source: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(SettingsError, match=message):
        list_scenes([folder / source])


def test_no_scene_at_all_is_wrong_usage() -> None:
    with pytest.raises(SettingsError, match="no scene given"):
        list_scenes([])
