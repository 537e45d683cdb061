"""Which assets of an Item are its bands, and what they are called: nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from pystac import Item

from pipeline.catalog.stac.assets import BandFiles, find_band_files
from pipeline.catalog.stac.links import document_location
from pipeline.errors import SceneError
from pipeline.scene.band_selection import apply_own_names
from pipeline.scene.bands import BandFile

PLACE = document_location("/data/item.json")
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def asset(href: str, *common_names: str | None, **more: Any) -> dict[str, Any]:
    """An asset with common names of its bands, as in STAC 1.0."""
    described = {"eo:bands": [{"common_name": name} for name in common_names]} if common_names else {}
    return {"href": href, "type": COG, "roles": ["data"], **described, **more}


def find(
    assets: Mapping[str, object], *, drivers: Sequence[str] = ("GTiff",), chosen: Sequence[str] = (), **properties: Any
) -> BandFiles:
    item = Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "x",
            "geometry": None,
            "properties": {"datetime": "2026-05-01T00:00:00Z", **properties},
            "links": [],
            "assets": assets,
        }
    )
    return find_band_files(item, PLACE, drivers=drivers, keys=chosen)


def names(assets: Mapping[str, object], **how: Any) -> dict[str, tuple[str | None, ...]]:
    """File name -> names of its bands."""
    return {file.location.removeprefix("/data/"): file.names for file in find(assets, **how).files}


def test_each_band_may_be_a_file_and_pictures_masks_and_records_are_none() -> None:
    assets = {
        "thumbnail": {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]},
        "visual": asset("tci.tif", "red", "green", "blue", gsd=1),
        "B04": asset("B04.tif", "red", gsd=10),
        "B08": asset("B08.tif", "nir", gsd=10),
        "B08-jp2": {**asset("B08.jp2", "nir", gsd=10), "type": "image/jp2"},
        "cloud": asset("cloud.tif", roles=["data", "cloud"]),
        "scl": asset("SCL.tif"),
        "info": {"href": "info.xml", "type": "application/xml", "roles": ["metadata"]},
    }
    assert names(assets) == {"B04.tif": ("red",), "B08.tif": ("nir",)}
    assert names(assets, drivers=["JP2OpenJPEG", "GTiff"]) == {"B04.tif": ("red",), "B08.jp2": ("nir",)}
    assert names(assets, chosen=["B08", "scl"]) == {"B08.tif": ("nir",), "SCL.tif": ("scl",)}


def test_band_metadata_is_read_from_stac_1_0_and_1_1() -> None:
    old = asset("a.tif", "red", "nir", **{"raster:bands": [{"nodata": 0, "scale": 0.1, "offset": -1}, {}]})
    new = {
        **asset("a.tif"),
        "nodata": "nan",
        "raster:scale": 2.0,
        "bands": [{"eo:common_name": "red", "nodata": 0, "raster:offset": 5}, {"name": "T1"}],
    }
    single = {**asset("a.tif"), "eo:common_name": "red", "nodata": 0}
    assert find({"x": old}).files == (
        BandFile(
            location="/data/a.tif",
            names=("red", "nir"),
            nodata=(0, None),
            scales=(0.1, None),
            offsets=(-1, None),
            own_names=(None, None),
        ),
    )
    (file,) = find({"x": new}).files
    assert (file.names, file.scales, file.offsets) == (("red", "T1"), (2, 2), (5, None))
    assert file.nodata[0] == 0
    assert file.nodata[1] is not None
    assert file.nodata[1] != file.nodata[1]  # NaN
    assert find({"x": single}).files[0].names == ("red",)


def test_a_single_file_without_band_metadata_names_its_bands_itself() -> None:
    assert find({"image": asset("a.tif")}) == BandFiles(location="/data/a.tif", files=())
    described = find({"image": asset("a.tif", **{"raster:bands": [{"nodata": 0}, {"nodata": 1}]})})
    assert described.files[0].names == (None, None)
    assert described.files[0].nodata == (0, 1)


def test_several_files_without_band_metadata_hold_a_band_each_named_by_asset_key() -> None:
    assert names({"B02": asset("2.tif"), "B03": asset("3.tif")}) == {"2.tif": ("B02",), "3.tif": ("B03",)}


# One name, several bands


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        ({"gsd": 10}, {"gsd": 20}),
        ({"proj:transform": [10, 0, 0, 0, -10, 0]}, {"proj:transform": [20, 0, 0, 0, -20, 0]}),
        ({"proj:transform": [10, 0, 0, 0, -10, 0], "gsd": 30}, {"proj:transform": [20, 0, 0, 0, -20, 0], "gsd": 10}),
        ({"raster:bands": [{"spatial_resolution": 10}]}, {"raster:bands": [{"spatial_resolution": 60}]}),
    ],
)
def test_of_two_bands_of_one_name_the_finer_counts(fine: dict[str, Any], coarse: dict[str, Any]) -> None:
    assets = {"B04_20m": asset("20.tif", "red", **coarse), "B04_10m": asset("10.tif", "red", **fine)}
    assert names(assets) == {"10.tif": ("red",)}
    assert names(assets, chosen=["B04_20m"]) == {"20.tif": ("red",)}


def test_indistinguishable_bands_of_one_name_use_their_own_names() -> None:
    def edge(name: str) -> dict[str, object]:
        return {"eo:bands": [{"common_name": "rededge", "name": name}]}

    assets = {"a": asset("5.tif", **edge("B05")), "b": asset("6.tif", **edge("B06")), "c": asset("4.tif", "red")}
    assert names(assets) == {"5.tif": ("B05",), "6.tif": ("B06",), "4.tif": ("red",)}
    assert names({**assets, "b": asset("6.tif", **edge("B05"))}) == {
        "5.tif": ("a",),
        "6.tif": ("b",),
        "4.tif": ("red",),
    }
    assert names(assets, chosen=["b", "c"]) == {"6.tif": ("rededge",), "4.tif": ("red",)}
    many = asset("567.tif", **{"eo:bands": [{"common_name": "rededge"}] * 2})
    assert names({"edges": many}) == {"567.tif": ("edges_1", "edges_2")}


def test_a_model_may_want_bands_by_the_names_of_their_provider() -> None:
    def described(common: str, name: str) -> dict[str, object]:
        return {"eo:bands": [{"common_name": common, "name": name}]}

    assets = {"a": asset("4.tif", **described("red", "B04")), "b": asset("8.tif", **described("nir", "B08"))}
    found = find(assets).files
    assert [file.names for file in apply_own_names(found, ("b08", "red"))] == [("red",), ("b08",)]
    assert [file.names for file in apply_own_names(found, ("B04", "B08"))] == [("B04",), ("B08",)]
    assert apply_own_names(found, ("red", "B04", "B03")) == found
    twins = find({**assets, "c": asset("9.tif", **described("nir09", "B08"))}).files
    assert apply_own_names(twins, ("B08",)) == twins


def test_bands_of_one_name_in_several_resolutions_are_distinguished_and_the_finest_of_each_counts() -> None:
    def edge(name: str, size: int) -> dict[str, object]:
        bands = [{"name": name, "eo:common_name": "rededge"}]
        return asset(f"{name}_{size}.tif", bands=bands, **{"proj:transform": [size, 0, 0, 0, -size, 0]})

    assets = {f"{name}_{size}": edge(name, size) for name in ("B05", "B06") for size in (60, 20)}
    assert names(assets) == {"B05_20.tif": ("B05",), "B06_20.tif": ("B06",)}


def test_an_ambiguous_band_name_is_replaced_by_the_asset_key() -> None:
    def described(*names: str, **more: Any) -> dict[str, object]:
        return {"eo:bands": [{"name": name} for name in names], **more}

    assets = {
        "a": asset("a.tif", **described("red")),
        "b": asset("b.tif", "red"),
        "c": asset("c.tif", **described("1", gsd=10)),
    }
    assert names(assets) == {"a.tif": ("a",), "b.tif": ("red",), "c.tif": ("1",)}
    assets["d"] = asset("d.tif", **described("1", "2", gsd=20))
    assert names(assets)["c.tif"] == ("c",)
    assert names(assets)["d.tif"] == ("d_1", "2")


def test_assets_that_are_chosen_count_in_the_order_of_the_choice() -> None:
    assets = {"l1": asset("1.tif", "red"), "l2": asset("2.tif", "red")}
    assert names(assets) == {"1.tif": ("l1",), "2.tif": ("l2",)}
    assert names(assets, chosen=["l2", "l1"]) == {"2.tif": ("red",)}


# Refusals


@pytest.mark.parametrize(
    ("assets", "how", "message"),
    [
        ({}, {}, "no asset is a raster that GTiff may open; it has none. Name the right ones with catalog.assets"),
        ({"a": asset("a.jp2", type="image/jp2")}, {}, "it has 1 image/jp2"),
        ({"a": asset("a.tif")}, {"chosen": ["b"]}, "has no asset b, which catalog.assets names; it has a"),
        ({"a": asset("../a.tif", "red")}, {}, "asset a: its link ../a.tif leads out of /data"),
        ({"a": asset("file:///etc/a.tif", "red")}, {}, "scheme file:// is not accepted"),
        ({"a": asset("/vsizip/a.zip/a.tif", "red")}, {}, "virtual paths are not accepted"),
        ({"a": asset("a\n.tif", "red")}, {}, "is not an address"),
        ({"a": asset("a.tif", "red", **{"raster:bands": [{}, {}]})}, {}, "lists of bands have 1 and 2 entries"),
        ({"a": asset("a.tif", "red", nodata="none")}, {}, "nodata is 'none', which is not a number"),
        ({"a": asset("a.tif", "red", **{"raster:scale": 0})}, {}, "scale is 0"),
        ({"a": asset("a.tif", "red", **{"raster:offset": "inf"})}, {}, "offset is inf"),
        ({"a": asset("a.tif", bands={"name": "red"})}, {}, "its bands is not a list of bands"),
    ],
)
def test_missing_or_invalid_assets_are_reported(assets: dict[str, object], how: dict[str, Any], message: str) -> None:
    with pytest.raises(SceneError, match=message):
        find(assets, **how)
