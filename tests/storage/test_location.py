"""Addresses are an allow-list; a scene's name is always a plain folder name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SceneError, TransientError
from pipeline.storage.location import Location, resolve_location, sanitize_name
from pipeline.storage.probe import probe_file


@pytest.mark.parametrize(
    ("text", "gdal_path"),
    [
        ("s3://bucket/key/a.tif", "/vsis3/bucket/key/a.tif"),
        ("https://host/a.tif", "/vsicurl/https://host/a.tif"),
        ("http://host:8000/a.tif?sig=x", "/vsicurl/http://host:8000/a.tif?sig=x"),
        ("HTTPS://host/a.tif", "/vsicurl/https://host/a.tif"),
    ],
)
def test_the_schemes_of_the_allow_list_reach_gdal(text: str, gdal_path: str) -> None:
    assert resolve_location(text) == Location(text, gdal_path, is_remote=True)


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "ftp://host/a.tif",
        "gs://bucket/a.tif",
        "s3+http://bucket/a.tif",
        "vsicurl://host/a.tif",
        "HDF5://x",
    ],
)
def test_every_other_scheme_is_refused(text: str) -> None:
    with pytest.raises(SceneError, match=r"the scheme .* is not accepted; use a local path, s3:// or https://"):
        resolve_location(text)


@pytest.mark.parametrize(
    "text",
    [
        "/vsicurl/http://host/a.tif",
        "/vsis3/bucket/a.tif",
        "/vsizip/a.zip/a.tif",
        "/vsimem/a.tif",
        "//vsicurl/http%3A//host/a.tif",
        "/./vsicurl/a.tif",
        "/tmp/../vsis3/bucket/a.tif",
    ],
)
def test_gdals_virtual_paths_are_refused_however_they_are_spelt(text: str) -> None:
    with pytest.raises(SceneError, match="virtual paths are not accepted"):
        resolve_location(text)


@pytest.mark.parametrize(
    "text",
    ["NETCDF:a.nc:red", "GTIFF_DIR:1:a.tif", "<VRTDataset></VRTDataset>", "x" * 5000, "a\0b.tif", "missing.tif"],
)
def test_what_is_no_file_is_no_scene_whatever_gdal_would_make_of_it(text: str) -> None:
    with pytest.raises((SceneError, TransientError), match=r"no such file|File name too long"):
        probe_file(resolve_location(text))


def test_a_driver_prefix_before_a_real_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(SceneError, match="no such file"):
        probe_file(resolve_location(f"GTIFF_DIR:1:{tmp_path}/a.tif"))


def test_a_folder_is_no_raster(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="a folder, not a raster file"):
        probe_file(resolve_location(tmp_path))


def test_a_local_path_is_made_absolute_for_workers_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve_location("in/a.tif").gdal_path == str(tmp_path / "in" / "a.tif")
    assert resolve_location("~/a.tif").gdal_path == str(tmp_path / "home" / "a.tif")
    assert str(resolve_location("in/a.tif")) == "in/a.tif"


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("in/Banepa north.tif", "Banepa_north"),
        ("in/Amazon_181.tiff_34.tif", "Amazon_181.tiff_34"),
        ("s3://bucket/2024/B04.jp2", "B04"),
        ("https://host/a%20b.tif?sig=x/y.z", "a_b"),
        ("https://host/a%2F..%2F..%2Fup.tif", "up"),
        ("https://host/...tif", "scene"),
        ("https://host/", "scene"),
        ("in/..tif", "scene"),
        ("in/run.json.tif", "run_json"),
        ("in/COLLECTION.JSON.tif", "COLLECTION_JSON"),
        ("in/polygons.gpkg.tif", "polygons_gpkg"),
        (f"in/{'é' * 200}.tif", "é" * 100),
    ],
)
def test_a_scene_is_named_by_its_stem(text: str, stem: str) -> None:
    assert resolve_location(text).stem == stem


@given(st.text())
def test_a_tidy_name_is_one_visible_folder(text: str) -> None:
    name = sanitize_name(text)
    assert 0 < len(name.encode()) <= 200
    assert not name.lower().endswith((".json", ".gpkg", ".parquet"))
    assert Path(name).name == name
    assert not name.startswith(".")
    assert sanitize_name(name) == name
