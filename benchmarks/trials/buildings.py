"""Buildings in real aerial scenes: train, segment unseen scenes through the flow, score against the labels.

The scored scenes are used neither for training nor for selecting epoch, threshold or temperature: blocks of the
training scenes are held out for that.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import geopandas
import numpy as np
import rasterio.features
import shapely.geometry
import yaml
from numpy.typing import NDArray
from rasterio import DatasetReader

from benchmarks.trials.records import CONFIGS, DATA, Options, Table, show, skipped
from pipeline.config import load_settings
from pipeline.evaluation.metrics import PixelScore, score_pixels, score_polygons
from pipeline.results import SceneReport
from pipeline.training import TrainReport, TrainSpec, train

FOLDER = DATA / "buildings"
NODATA = 255
"""In `mask.tif`."""
FLOORS = {"banepa_south": 0.514, "zanzibar_2": 0.524, "kampala_2": 0.196}
"""Building IoU of a pixel-wise gradient-boosting model on colour, local means and deviations."""


TRAINING = ("banepa_north", "kampala_1", "catanduanes_1", "zanzibar_1")
SCORED = ("banepa_south", "kampala_2", "catanduanes_2", "zanzibar_2")
LEFT_OUT_EPOCHS = 12
"""Epochs of each training without one city; the settings file's are for all four."""


@dataclass(frozen=True, kw_only=True)
class FlowRun:
    """One run of the flow, in a subprocess."""

    reports: tuple[SceneReport, ...]
    """One per scene."""
    wall_s: float
    """From the call of the flow to its return, model loading and Prefect's start included."""
    peak_bytes: int
    """Most memory resident at once in the process."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scored scene."""

    scene: str
    """Stem of the scene."""
    iou: float
    """Building IoU on the label mask's own pixels, 0..1."""
    precision: float
    """Share of found building pixels that are labelled."""
    recall: float
    """Share of labelled building pixels that were found."""
    floor: float | None
    """Building IoU to beat, where one is known."""
    object_f1: float
    """F1 of polygons matched at an IoU above 0.5."""
    mean_object_iou: float
    """Mean IoU of those pairs."""
    perfect_f1: float
    """Object F1 of the label mask itself, brought to the result's grid and cut into polygons: what a mask can reach."""
    labelled: int
    """Labelled buildings in the scene, clipped to it."""
    polygons: int
    """Polygons found."""
    seconds: float
    """Wall time of the scene's stages, while another scene may run concurrently."""


def run(out: Path, options: Options) -> list[Table]:
    """Buildings of four places at 0.3 m: one model for all, scored on scenes it has never seen."""
    if not FOLDER.is_dir():
        return skipped(FOLDER)
    trained = learn(TRAINING, out, options)
    flow = segment_apart(trained.checkpoint, SCORED, out / "results")
    title = f"Trained on all four training scenes: {_told(trained)}; flow {flow.wall_s:.1f} s, "
    title += f"peak memory {flow.peak_bytes / 2**20:.0f} MiB"
    return [Table(title=title, rows=[asdict(score(report)) for report in flow.reports])]


def run_left_out(out: Path, options: Options) -> list[Table]:
    """Buildings of a place that no training scene shows: trained on three cities, scored on the fourth."""
    if not FOLDER.is_dir():
        return skipped(FOLDER)
    few = Options(overrides=(f"learning.epochs={LEFT_OUT_EPOCHS}", *options.overrides))
    rows = []
    for left_out, scored in zip(TRAINING, SCORED, strict=True):
        print(f"without {left_out}:", flush=True)
        kept = [stem for stem in TRAINING if stem != left_out]
        trained = learn(kept, out / left_out, few)
        flow = segment_apart(trained.checkpoint, [scored], out / left_out / "results")
        row = asdict(score(flow.reports[0]))
        rows.append(row | {"minutes": round(trained.seconds / 60, 1)})
    return [Table(title=f"Trained without the scored scene's city, {LEFT_OUT_EPOCHS} epochs each", rows=rows)]


def learn(stems: Sequence[str], out: Path, options: Options) -> TrainReport:
    """Train on some of the scenes with the settings file of the repository."""
    spec = load_settings(TrainSpec, CONFIGS / "buildings.yaml", options.overrides)
    out.mkdir(parents=True, exist_ok=True)
    images = [FOLDER / "images" / f"{stem}.tif" for stem in stems]
    return train(images, FOLDER / "labels", out / "buildings.safetensors", spec=spec, progress=show)


def _told(trained: TrainReport) -> str:
    epochs, minutes, speed = len(trained.history), trained.seconds / 60, trained.pixels_per_second / 1e6
    held_out = f"held-out blocks IoU {trained.best_iou:.3f} in epoch {trained.best_epoch}"
    return f"{epochs} epochs in {minutes:.1f} minutes ({speed:.2f} Mpx/s), {held_out}"


def segment_apart(checkpoint: Path, stems: Sequence[str], out: Path) -> FlowRun:
    """Segment scenes through the flow in a fresh process, so that its memory is that of segmenting alone."""
    settings = yaml.safe_load((CONFIGS / "segment-buildings.yaml").read_text())
    scenes = [str(FOLDER / "images" / f"{stem}.tif") for stem in stems]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(segment, scenes, str(checkpoint), str(out), settings).result()


def segment(scenes: list[str], checkpoint: str, out: str, settings: dict[str, object]) -> FlowRun:
    """Run the flow without a server, its records in a temporary folder.

    Raises:
        RuntimeError: a scene failed.
    """
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(PREFECT_HOME=home, PREFECT_LOGGING_LEVEL="WARNING", PREFECT_SERVER_ANALYTICS_ENABLED="false")
        os.environ.pop("PREFECT_API_URL", None)
        from flows.segment import segment_catalog

        start = time.perf_counter()
        state = segment_catalog(scenes=scenes, model=checkpoint, out=out, settings=settings, return_state=True)
        wall_s = time.perf_counter() - start
    if state.is_failed():
        raise RuntimeError(f"the flow failed: {state.message}")
    return FlowRun(reports=tuple(state.result()), wall_s=wall_s, peak_bytes=peak_bytes())


def peak_bytes() -> int:
    """Most memory of this process that was resident at once (Linux); unlike `ru_maxrss`, without the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def score(report: SceneReport) -> Row:
    """Compare one scene's mask and polygons with its labels."""
    folder = Path(report.folder)
    mask, labels = folder / report.outputs.names["mask"], FOLDER / "masks" / f"{report.scene}.tif"
    pixels = score_mask(mask, labels)
    found = geopandas.read_file(folder / report.outputs.names["polygons"], layer="polygons").geometry.values
    truth = clipped_labels(report.scene)
    objects = score_polygons(truth, found)
    return Row(
        scene=report.scene,
        iou=pixels.iou,
        precision=pixels.precision,
        recall=pixels.recall,
        floor=FLOORS.get(report.scene),
        object_f1=objects.f1,
        mean_object_iou=objects.mean_iou,
        perfect_f1=score_polygons(truth, perfect_polygons(mask, labels)).f1,
        labelled=objects.reference,
        polygons=objects.predicted,
        seconds=sum(report.statistics.seconds.values()),
    )


def score_mask(found: Path, truth: Path) -> PixelScore:
    """Score a mask on the grid of the label mask, valid pixels only."""
    with rasterio.open(found) as mask, rasterio.open(truth) as labels:
        values = nearest(mask, labels)
        return score_pixels(labels.read(1) == 1, values == 1, values != NODATA)


def perfect_polygons(found: Path, truth: Path) -> list[shapely.Geometry]:
    """The connected parts of the label mask on the grid of a result."""
    with rasterio.open(found) as mask, rasterio.open(truth) as labels:
        inside = nearest(labels, mask)
        parts = rasterio.features.shapes(inside, mask=inside == 1, transform=mask.transform)
        return [shapely.geometry.shape(outline) for outline, _ in parts]


def nearest(source: DatasetReader, target: DatasetReader) -> NDArray[np.uint8]:
    """The first band on another grid of the same CRS and extent: the pixel that holds each target pixel's centre."""
    to_source = ~source.transform @ target.transform
    cols, _ = to_source @ (np.arange(target.width) + 0.5, np.zeros(target.width))
    _, rows = to_source @ (np.zeros(target.height), np.arange(target.height) + 0.5)
    return np.asarray(source.read(1)[np.floor(rows).astype(int)[:, None], np.floor(cols).astype(int)])


def clipped_labels(stem: str) -> NDArray[np.object_]:
    """Labelled buildings of a scene, in its CRS, clipped to it; broken ones repaired."""
    with rasterio.open(FOLDER / "images" / f"{stem}.tif") as scene:
        frame = geopandas.read_file(FOLDER / "labels" / f"{stem.rsplit('_', 1)[0]}.geojson").to_crs(scene.crs)
        inside = shapely.intersection(shapely.make_valid(frame.geometry.values), shapely.box(*scene.bounds))
    return np.asarray(inside[shapely.area(inside) > 0], dtype=object)
