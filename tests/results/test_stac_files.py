"""STAC documents read back: grids of Items, and the extent of a collection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from affine import Affine
from rasterio.crs import CRS

from pipeline.grid.raster_grid import RasterGrid
from pipeline.model.card import ModelCard
from pipeline.results.report import OutputFiles, SceneInputs, SceneReport
from pipeline.results.stac_item import ItemSource, build_item, collection_of, grid_description

CARD = ModelCard(bands=("red",), classes=("roof",))
UTM = RasterGrid(crs=CRS.from_epsg(32633), transform=Affine(0.5, 0, 5e5, 0, -0.5, 5e6), height=30, width=20)


def report(scene: str, date: str) -> SceneReport:
    settings: dict[str, Any] = {"card": CARD.to_json(), "mosaic": {"dtype": "uint8"}}
    inputs = SceneInputs(content_key="k", model="m", settings=settings, date=date, date_of="scene")
    return SceneReport(scene=scene, location="a.tif", status="done", inputs=inputs, outputs=OutputFiles())


def item(scene: str = "town", date: str = "2024-01-01T00:00:00Z", grid: RasterGrid = UTM) -> dict[str, Any]:
    return build_item(report(scene, date), grid, {})


def test_the_grid_of_an_item_is_read_back() -> None:
    assert grid_description(item()) == UTM


@pytest.mark.parametrize(
    "change",
    [
        {"proj:code": "IAU_2015:30100"},
        {"proj:code": "ESRI:4326"},
        {"proj:code": "4326"},
        {"proj:code": None},
        {"proj:code": 5},
        {"proj:shape": [30]},
        {"proj:shape": [0, 20]},
        {"proj:transform": [1, 2]},
        {"proj:transform": [0, 0, 0, 0, 0, 0]},
    ],
)
def test_an_item_without_a_grid_of_ours_has_none(change: dict[str, Any]) -> None:
    document = item()
    document["properties"] |= change
    assert grid_description(document) is None


def test_a_collection_spans_its_items_from_the_first_to_the_last() -> None:
    dates = ["2024-05-01T00:00:00Z", "2023-01-01T00:00:00Z", "2024-12-31T00:00:00Z"]
    sources = [ItemSource(item=item(f"s{k}", date), report=report(f"s{k}", date)) for k, date in enumerate(dates)]
    extent: Any = collection_of(sources)["extent"]
    assert extent["temporal"]["interval"] == [["2023-01-01T00:00:00Z", "2024-12-31T00:00:00Z"]]


@pytest.mark.parametrize(
    ("location", "href"),
    [
        ("https://host/a b.tif", "https://host/a b.tif"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
        ("/a/b.tif", "file:///a/b.tif"),
    ],
)
def test_an_item_links_to_its_scene_by_address(location: str, href: str) -> None:
    document = build_item(replace(report("town", "2024-01-01T00:00:00Z"), location=location), UTM, {})
    links: Any = document["links"]
    assert [link["href"] for link in links if link["rel"] == "derived_from"] == [href]
