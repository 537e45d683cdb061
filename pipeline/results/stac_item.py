"""STAC 1.1 Items and Collection of results, as dictionaries; `stac_files` writes them.

Every link between the documents is relative, so the folder can be moved or published as it is. The same result gives
the same Item, on any machine and at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import ModelError, SceneError
from pipeline.grid import Bbox, RasterGrid, join_bboxes, resolve_footprint
from pipeline.model import ModelCard
from pipeline.mosaic import TOP_LEVEL, LevelType, stored_nodata
from pipeline.results.report import REPORT, SceneReport
from pipeline.results.stac_model import EXTENSION as MODEL_EXTENSION
from pipeline.results.stac_model import Json, class_record, model_fields

STAC_VERSION = "1.1.0"
COLLECTION_ID = "scenemill-results"
"""A constant, so that an Item does not depend on its folder."""
COLLECTION = "collection.json"
ITEM = "item.json"
KEY = "scenemill:key"
"""Property of an Item: the content key of its result."""
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v1.1.0", "classification/v2.0.0", "file/v2.1.0", "processing/v1.2.0")
)
LEVEL = "L4"
"""Processing level of model output."""
DATE_DESCRIPTIONS = {
    "scene": "",
    "file": " The scene does not say when it was taken: datetime is when its file last changed.",
    "processing": " The scene does not say when it was taken: datetime is when it was processed.",
}
"""Text that the description adds, by `SceneInputs.date_of`."""


@dataclass(frozen=True, kw_only=True)
class AssetKind:
    """Metadata of one kind of output."""

    title: str
    media_type: str
    """IANA name, with parameters."""
    roles: tuple[str, ...]
    """Roles, in the terms of the STAC best practices."""


GEOPACKAGE = "application/geopackage+sqlite3"
MERGED: Mapping[object, str] = {"polygons.gpkg": GEOPACKAGE, "polygons.parquet": "application/vnd.apache.parquet"}
"""Name of a merged file -> its media type."""
GEOJSON = "application/geo+json"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
ASSETS: Mapping[str, AssetKind] = {
    "probability": AssetKind(title="Probability of each class", media_type=COG, roles=("data", "probability")),
    "mask": AssetKind(title="Class of each pixel", media_type=COG, roles=("data", "classification")),
    "polygons": AssetKind(title="Polygons", media_type=GEOPACKAGE, roles=("data",)),
    "preview": AssetKind(title="Scene and outlines", media_type="image/png", roles=("overview",)),
    "report": AssetKind(title="What went in and came out", media_type="application/json", roles=("metadata",)),
}
"""Kind of output, as in `OutputFiles.names`, or `report` -> metadata of its asset."""


@dataclass(frozen=True, kw_only=True)
class ItemSource:
    """A complete result with its Item."""

    item: Mapping[str, object]
    """As `build_item` returned it."""
    report: SceneReport


def build_item(report: SceneReport, grid: RasterGrid, sizes: Mapping[str, int]) -> Json:
    """The Item of one complete result, for the scene's folder; `sizes`: bytes of the outputs, as far as known."""
    footprint = resolve_footprint(grid)
    spatial: Json = (
        {"geometry": None} if footprint is None else {"geometry": footprint.geometry, "bbox": footprint.bbox}
    )
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": report.scene,
        "collection": COLLECTION_ID,
        **spatial,
        "properties": _properties(report, grid),
        "links": [
            *(_link(rel, f"../{COLLECTION}") for rel in ("root", "parent", "collection")),
            *_source_links(report),
        ],
        "assets": _assets(report, grid, sizes),
    }


def grid_description(item: Mapping[str, object]) -> RasterGrid | None:
    """The grid in the projection fields of an Item of Scenemill; None without a valid one."""
    try:
        properties = cast("Mapping[str, Any]", item["properties"])
        crs = _parse_crs(properties["proj:code"], properties.get("proj:wkt2"))
        height, width = properties["proj:shape"]
        return RasterGrid(crs=crs, transform=Affine(*properties["proj:transform"]), height=height, width=width)
    except (KeyError, TypeError, ValueError, AttributeError, CRSError, SceneError):
        return None


def is_valid_item(item: Mapping[str, object], report: SceneReport) -> bool:
    """Whether a parsed `item.json` has the fields that `collection_of` takes from it, of the scene of this report."""
    properties, bbox = item.get("properties"), item.get("bbox", (0, 0, 0, 0))
    try:
        _card_of(report)
    except (ModelError, KeyError, TypeError):
        return False
    return (
        item.get("id") == report.scene
        and isinstance(properties, dict)
        and isinstance(properties.get("datetime"), str)
        and isinstance(bbox, Sequence)
        and len(bbox) == 4
        and all(isinstance(edge, int | float) for edge in bbox)
    )


def collection_of(results: Sequence[ItemSource], merged: Mapping[str, object] | None = None) -> Json:
    """The Collection of one or more results, for the folder above theirs; `merged` is the record `merge.json`."""
    items = [result.item for result in results]
    bboxes = [cast("Bbox", tuple(cast("Sequence[float]", item["bbox"]))) for item in items if "bbox" in item]
    dates = sorted(cast("Mapping[str, str]", item["properties"])["datetime"] for item in items)
    models = {result.report.inputs.model: _card_of(result.report) for result in results}
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [MODEL_EXTENSION],
        "id": COLLECTION_ID,
        "title": "Segmented scenes",
        "description": _description(results, models),
        "license": "other",
        "extent": {
            "spatial": {"bbox": [join_bboxes(bboxes) if bboxes else (-180.0, -90.0, 180.0, 90.0)]},
            "temporal": {"interval": [[dates[0], dates[-1]]]},
        },
        **model_fields(models),
        "links": [
            _link("root", f"./{COLLECTION}"),
            *({**_link("item", f"./{item['id']}/{ITEM}"), "type": GEOJSON} for item in items),
        ],
        **_merged(merged or {}),
    }


def _merged(record: Mapping[str, object]) -> Json:
    """The asset of the merged polygons, if there is one."""
    file, scenes = record.get("file"), record.get("scenes")
    if file not in MERGED or not isinstance(scenes, list):
        return {}
    title = f"Polygons of {len(scenes)} scene(s); what several saw is in it once"
    asset = {"href": f"./{file}", "title": title, "type": MERGED[file], "roles": ["data"]}
    return {"assets": {"polygons": asset}}


def _description(results: Sequence[ItemSource], models: Mapping[str, ModelCard]) -> str:
    classes = ", ".join(sorted({name for card in models.values() for name in card.classes}))
    return f"{len(results)} scene(s) segmented with Scenemill by {len(models)} model(s) into the classes {classes}."


def _card_of(report: SceneReport) -> ModelCard:
    return ModelCard.from_json(cast("str", report.inputs.settings["card"]))


def _properties(report: SceneReport, grid: RasterGrid) -> Json:
    card, inputs = _card_of(report), report.inputs
    return {
        "datetime": inputs.date,
        "title": report.scene,
        "description": f"{', '.join(card.classes)} of the scene {report.scene}.{_restriction(report)}"
        f"{DATE_DESCRIPTIONS[inputs.date_of]}",
        "gsd": round(grid.resolution_m, 6),
        **_projection(grid),
        "processing:level": LEVEL,
        "processing:software": {"scenemill": inputs.version},
        "processing:lineage": f"Segmented by the model {inputs.model}, {inputs.passes} pass(es) per tile.",
        "scenemill:model": inputs.model,
        KEY: inputs.content_key,
    }


def _restriction(report: SceneReport) -> str:
    """Text that the description adds for a result restricted to an area."""
    inputs = report.inputs
    return f" Restricted to {inputs.area}, {100 * inputs.area_share:.3g} % of the scene." if inputs.area else ""


def _projection(grid: RasterGrid) -> Json:
    authority = grid.crs.to_authority()
    by_wkt: Json = {"proj:code": None, "proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
    return {
        **({"proj:code": ":".join(authority)} if authority else by_wkt),
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
        "proj:bbox": list(grid.bounds),
    }


def _parse_crs(code: str | None, wkt: str | None) -> CRS:
    """A CRS by EPSG code or WKT; nothing else, so that PROJ never opens a file or an address."""
    if code is None:
        return CRS.from_wkt(wkt)
    authority, number = code.split(":")
    if authority != "EPSG":
        raise ValueError(authority)
    return CRS.from_epsg(int(number))


def _assets(report: SceneReport, grid: RasterGrid, sizes: Mapping[str, int]) -> Json:
    card = _card_of(report)
    mosaic = cast("Mapping[str, LevelType]", report.inputs.settings["mosaic"])
    more = {"probability": _probability_bands(card, mosaic["dtype"], grid), "mask": _mask_bands(card, grid)}
    files = {**report.outputs.names, "report": REPORT}
    return {
        kind: {
            "href": f"./{files[kind]}",
            "title": asset.title,
            "type": asset.media_type,
            "roles": list(asset.roles),
            **more.get(kind, {}),
            **({"file:size": sizes[files[kind]]} if files[kind] in sizes else {}),
        }
        for kind, asset in ASSETS.items()
        if kind in files
    }


def _probability_bands(card: ModelCard, dtype: LevelType, grid: RasterGrid) -> Json:
    as_computed = dtype == "float32"
    band = {
        "data_type": dtype,
        "nodata": "nan" if as_computed else int(stored_nodata(dtype)),
        "scale": 1 if as_computed else 1 / TOP_LEVEL[dtype],
        "offset": 0,
        "sampling": "area",
        "spatial_resolution": round(grid.resolution_m, 6),
    }
    return {"bands": [{"name": name} for name in card.classes], "raster:bands": [band for _ in card.classes]}


def _mask_bands(card: ModelCard, grid: RasterGrid) -> Json:
    band = {"data_type": "uint8", "nodata": 255, "sampling": "area", "spatial_resolution": round(grid.resolution_m, 6)}
    names = {0: card.background or "none", **{value: name for _, value, name in card.foreground}}
    classes = [class_record(value, name) for value, name in names.items()]
    nodata = {**class_record(255, "nodata"), "nodata": True}
    return {"bands": [{"name": "class"}], "raster:bands": [band], "classification:classes": [*classes, nodata]}


def _source_links(report: SceneReport) -> list[Json]:
    """Links to the scene: its STAC Item, or else its files."""
    if report.inputs.source is not None:
        return [{"rel": "derived_from", "href": _address(report.inputs.source), "title": "The scene", "type": GEOJSON}]
    locations = report.inputs.files or [report.location]
    return [{"rel": "derived_from", "href": _address(each), "title": "The scene"} for each in locations]


def _link(rel: str, href: str) -> Json:
    return {"rel": rel, "href": href, "type": "application/json"}


def _address(location: str) -> str:
    """A scene's address as the operator gave it, or the URI of its file."""
    return location if "://" in location else Path(location).expanduser().absolute().as_uri()
