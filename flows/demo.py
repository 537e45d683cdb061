"""The demo: generate a synthetic town, segment it through the flow, and score the result against the reference."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
from rasterio.windows import Window

from flows.segment import segment_catalog
from pipeline.config import SegmentSpec, load_settings
from pipeline.errors import TransientError
from pipeline.evaluation.metrics import ObjectScore, PixelScore, score_pixels, score_polygons
from pipeline.results import SceneReport
from pipeline.storage import import_pyogrio, open_raster
from pipeline.training.synthetic import Town, write_town

MODEL = Path(__file__).parents[1] / "pipeline" / "data" / "demo.safetensors"
SETTINGS = ("polygons.min_area_m2=4", "polygons.fill_holes_m2=4")


def run_demo(out: Path, *, size: int, seed: int) -> Iterator[str]:
    """Yield lines for the terminal while the demo runs on a town of `size` x `size` pixels of half a metre."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    scene, truth = out / "town.tif", out / "truth.geojson"
    town = write_town(scene, seed, height=size, width=size)
    town.write_truth(truth)
    yield f"town:       {scene} ({size} x {size} px, {len(town.buildings):,} buildings; truth in {truth})"
    settings = load_settings(SegmentSpec, overrides=SETTINGS)
    state = segment_catalog(scenes=[str(scene)], model=str(MODEL), out=str(out), settings=settings, return_state=True)
    if state.is_failed():
        raise TransientError(f"the demo's flow failed: {state.message}")
    report: SceneReport = state.result()[0]
    folder = Path(report.folder)
    yield from _output_lines(folder, report)
    pixels, objects = score(town, folder)
    yield f"truth:      building IoU {pixels.iou:.3f}, object F1 {objects.f1:.3f} at IoU 0.5"
    (out / "score.json").write_text(json.dumps({"iou": pixels.iou, "object_f1": objects.f1}) + "\n")
    yield f"all done in {time.perf_counter() - start:.0f} s"


def score(town: Town, folder: Path) -> tuple[PixelScore, ObjectScore]:
    """Compare mask and polygons with the town's buildings."""
    reference = town.mask()
    pixels = PixelScore()
    with open_raster(folder / "mask.tif") as dataset:
        for top in range(0, dataset.height, 1024):
            mask = dataset.read(1, window=Window(0, top, dataset.width, min(1024, dataset.height - top)))
            pixels += score_pixels(reference[top : top + len(mask)] == 1, mask == 1, mask != 255)
    table = import_pyogrio().read_dataframe(folder / "polygons.gpkg", layer="polygons")
    polygons = table.geometry.to_numpy()
    return pixels, score_polygons(np.asarray(town.buildings), shapely.make_valid(polygons))


def _output_lines(folder: Path, report: SceneReport) -> Iterator[str]:
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in report.statistics.seconds.items())
    yield f"mosaic:     {folder / 'probability.tif'} (Cloud-Optimized GeoTIFF, 0..1)"
    yield f"mask:       {folder / 'mask.tif'}"
    yield f"polygons:   {folder / 'polygons.gpkg'} ({report.polygons:,} polygons; opens styled in QGIS)"
    yield f"preview:    {folder / 'preview.png'}"
    yield f"report:     {folder / 'report.json'} ({report.status}: {seconds})"
