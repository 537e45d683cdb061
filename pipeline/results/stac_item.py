"""Results as STAC 1.1: an Item for each scene, and a Collection of them. Dictionaries only; `stac_files` writes them.

Every link between the documents is relative, so the folder can be moved or published as it is. The same result gives
the same Item, wherever and whenever it is described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import SceneError
from pipeline.grid import Bbox, RasterGrid, join_bboxes, resolve_footprint
from pipeline.model import ModelCard
from pipeline.mosaic import TOP_LEVEL, LevelType, stored_nodata
from pipeline.results.publish import REPORT
from pipeline.results.report import SceneReport
from pipeline.results.stac_model import EXTENSION as MODEL_EXTENSION
from pipeline.results.stac_model import Json, class_record, model_fields

STAC_VERSION = "1.1.0"
COLLECTION_ID = "scenemill-results"
"""The same everywhere, so that an Item does not depend on the folder that it lies in."""
COLLECTION = "collection.json"
ITEM = "item.json"
KEY = "scenemill:key"
"""Property of an Item: the content key of the result that it describes."""
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "raster/v1.1.0", "classification/v2.0.0", "file/v2.1.0", "processing/v1.2.0")
)
"""What Items use beyond the core."""
LEVEL = "L4"
"""Processing level of what a model made of measurements."""
DATE_DESCRIPTIONS = {
    "scene": "",
    "file": " The scene does not say when it was taken: datetime is when its file last changed.",
    "processing": " The scene does not say when it was taken: datetime is when it was processed.",
}
"""What the description adds, by `SceneReport.date_of`."""


@dataclass(frozen=True, kw_only=True)
class AssetKind:
    """What is the same for an output of every scene."""

    title: str
    """What it is, in a few words."""
    media_type: str
    """IANA name, with parameters."""
    roles: tuple[str, ...]
    """What it is for, in the words of the STAC best practices."""


GEOPACKAGE = "application/geopackage+sqlite3"
MERGED: Mapping[object, str] = {"polygons.gpkg": GEOPACKAGE, "polygons.parquet": "application/vnd.apache.parquet"}
"""Name of a file of the polygons of all scenes -> its media type."""
GEOJSON = "application/geo+json"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
ASSETS: Mapping[str, AssetKind] = {
    "probability": AssetKind(title="Probability of each class", media_type=COG, roles=("data", "probability")),
    "mask": AssetKind(title="Class of each pixel", media_type=COG, roles=("data", "classification")),
    "polygons": AssetKind(title="Polygons", media_type=GEOPACKAGE, roles=("data",)),
    "preview": AssetKind(title="Scene and outlines", media_type="image/png", roles=("overview",)),
    "report": AssetKind(title="What went in and came out", media_type="application/json", roles=("metadata",)),
}
"""Kind of output, as in `SceneReport.outputs`, -> what its asset says; and the report itself."""


@dataclass(frozen=True, kw_only=True)
class ItemSource:
    """A whole result with its Item."""

    item: Mapping[str, object]
    """What `build_item` made."""
    report: SceneReport
    """The report beside it."""


def build_item(report: SceneReport, grid: RasterGrid, sizes: Mapping[str, int]) -> Json:
    """The Item of one scene, to lie in the scene's folder.

    Args:
        report: of a whole result.
        grid: of its rasters.
        sizes: bytes of each output; what has none here is told without its size.
    """
    footprint = resolve_footprint(grid)
    placed: Json = {"geometry": None} if footprint is None else {"geometry": footprint.geometry, "bbox": footprint.bbox}
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": report.scene,
        "collection": COLLECTION_ID,
        **placed,
        "properties": _properties(report, grid),
        "links": [
            *(_link(rel, f"../{COLLECTION}") for rel in ("root", "parent", "collection")),
            *_origins(report),
        ],
        "assets": _assets(report, grid, sizes),
    }


def grid_description(item: Mapping[str, object]) -> RasterGrid | None:
    """The grid that an Item of ours was made with; None where it tells of none."""
    try:
        told = cast("Mapping[str, Any]", item["properties"])
        crs = _crs_told(told["proj:code"], told.get("proj:wkt2"))
        height, width = told["proj:shape"]
        return RasterGrid(crs=crs, transform=Affine(*told["proj:transform"]), height=height, width=width)
    except (KeyError, TypeError, ValueError, AttributeError, CRSError, SceneError):
        return None


def collection_of(results: Sequence[ItemSource], merged: Mapping[str, object] | None = None) -> Json:
    """The Collection of these results, to lie beside their folders.

    Args:
        results: at least one.
        merged: the record of the merge of their polygons, `merge.json`; None where there is none.
    """
    items = [result.item for result in results]
    bboxes = [cast("Bbox", tuple(cast("Sequence[float]", item["bbox"]))) for item in items if "bbox" in item]
    dates = sorted(cast("Mapping[str, str]", item["properties"])["datetime"] for item in items)
    models = {result.report.model: _card_of(result.report) for result in results}
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
    """The asset of the polygons of all scenes, if there is one."""
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
    return ModelCard.from_json(cast("str", report.settings["card"]))


def _properties(report: SceneReport, grid: RasterGrid) -> Json:
    card = _card_of(report)
    return {
        "datetime": report.date,
        "title": report.scene,
        "description": f"{', '.join(card.classes)} of the scene {report.scene}.{_restriction(report)}"
        f"{DATE_DESCRIPTIONS[report.date_of]}",
        "gsd": round(grid.resolution_m, 6),
        **_projection(grid),
        "processing:level": LEVEL,
        "processing:software": {"scenemill": report.version},
        "processing:lineage": f"Segmented by the model {report.model}, {report.passes} pass(es) per tile.",
        "scenemill:model": report.model,
        KEY: report.content_key,
    }


def _restriction(report: SceneReport) -> str:
    """What the description adds where an area restricts the result."""
    return f" Restricted to {report.area}, {100 * report.area_share:.3g} % of the scene." if report.area else ""


def _projection(grid: RasterGrid) -> Json:
    authority = grid.crs.to_authority()
    written_out: Json = {"proj:code": None, "proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
    return {
        **({"proj:code": ":".join(authority)} if authority else written_out),
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
        "proj:bbox": list(grid.bounds),
    }


def _crs_told(code: str | None, written_out: str | None) -> CRS:
    """A CRS by its number or its definition; by nothing that could lead PROJ to a file or an address."""
    if code is None:
        return CRS.from_wkt(written_out)
    authority, number = code.split(":")
    if authority != "EPSG":
        raise ValueError(authority)
    return CRS.from_epsg(int(number))


def _assets(report: SceneReport, grid: RasterGrid, sizes: Mapping[str, int]) -> Json:
    card = _card_of(report)
    mosaic = cast("Mapping[str, LevelType]", report.settings["mosaic"])
    more = {"probability": _probability_bands(card, mosaic["dtype"], grid), "mask": _mask_bands(card, grid)}
    files = {**report.outputs, "report": REPORT}
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
    band = {
        "data_type": "uint8",
        "nodata": 255,
        "sampling": "area",
        "spatial_resolution": round(grid.resolution_m, 6),
    }
    names = {0: card.background or "none", **{value: name for _, value, name in card.foreground}}
    classes = [class_record(value, name) for value, name in names.items()]
    nodata = {**class_record(255, "nodata"), "nodata": True}
    return {"bands": [{"name": "class"}], "raster:bands": [band], "classification:classes": [*classes, nodata]}


def _origins(report: SceneReport) -> list[Json]:
    """Links to what the scene was: the STAC Item that it comes from, or else its files."""
    if report.source is not None:
        return [{"rel": "derived_from", "href": _address(report.source), "title": "The scene", "type": GEOJSON}]
    places = report.files or [report.location]
    return [{"rel": "derived_from", "href": _address(place), "title": "The scene"} for place in places]


def _link(rel: str, href: str) -> Json:
    return {"rel": rel, "href": href, "type": "application/json"}


def _address(location: str) -> str:
    """A scene's address as the operator gave it, or that of its file."""
    return location if "://" in location else Path(location).expanduser().absolute().as_uri()
