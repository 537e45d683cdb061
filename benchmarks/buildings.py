"""Buildings in real aerial scenes: train, segment unseen scenes through the flow, score against the labels.

    python -m benchmarks.buildings                          both trainings; prints the tables of docs/accuracy.md
    python -m benchmarks.buildings --only banepa            one training scene, one scene to score
    python -m benchmarks.buildings --minutes 1 --out out    a quick look; keeps checkpoints, mosaics and previews

The scored scenes take no part in training, nor in choosing the epoch: for that, blocks of the training
scenes are held out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import geopandas
import numpy as np
import rasterio.features
import shapely.geometry
import yaml
from numpy.typing import NDArray
from rasterio import DatasetReader

from pipeline.config import load_settings
from pipeline.report import SceneReport
from pipeline.scoring import PixelScore, score_pixels, score_polygons
from pipeline.training.records import TrainProgress, TrainReport
from pipeline.training.settings import TrainSpec
from pipeline.training.train import train

DATA = Path(__file__).parents[2] / "shared" / "data" / "buildings"
CONFIGS = Path(__file__).parents[1] / "configs"
NODATA = 255
"""In `mask.tif`."""
FLOORS = {"banepa_south": 0.514, "zanzibar_2": 0.524, "kampala_2": 0.196}
"""Building IoU of a pixel-wise gradient-boosting model on colour, local means and deviations."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Scenes to learn from, and unseen scenes to score."""

    name: str
    """Its name on the command line."""
    training: tuple[str, ...]
    """Stems of the scenes to learn from."""
    scored: tuple[str, ...]
    """Stems of the scenes to score."""
    epoch_share: float = 1.0
    """Epochs as a share of the settings file's, for fewer scenes need fewer."""


EXPERIMENTS = (
    Experiment(name="banepa", training=("banepa_north",), scored=("banepa_south",), epoch_share=0.3),
    Experiment(
        name="all",
        training=("banepa_north", "kampala_1", "catanduanes_1", "zanzibar_1"),
        scored=("banepa_south", "kampala_2", "catanduanes_2", "zanzibar_2"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class FlowRun:
    """One run of the flow, in a process of its own."""

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
    """Wall time of the scene's stages, while another scene may be in hand."""


def main() -> None:
    """Run the experiments asked for, print the tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[experiment.name for experiment in EXPERIMENTS])
    parser.add_argument("--minutes", type=float, help="most training time per experiment; by default all epochs")
    parser.add_argument("--out", type=Path, help="keep checkpoints and results in this folder")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="training settings")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: the building scenes are not at {os.path.relpath(DATA)}")
        return
    overrides = [*arguments.set]
    if arguments.minutes:
        overrides.append(f"learning.max_minutes={arguments.minutes}")
    spec = load_settings(TrainSpec, CONFIGS / "buildings.yaml", overrides)
    wanted = [experiment for experiment in EXPERIMENTS if arguments.only in (None, experiment.name)]
    with tempfile.TemporaryDirectory() as temporary:
        figures = []
        for experiment in wanted:
            figures.append(run(experiment, spec, (arguments.out or Path(temporary)) / experiment.name))
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def run(experiment: Experiment, spec: TrainSpec, out: Path) -> dict[str, object]:
    """Train, segment, score and print one experiment; returns its figures."""
    images = [DATA / "images" / f"{stem}.tif" for stem in experiment.training]
    epochs = max(1, round(spec.learning.epochs * experiment.epoch_share))
    spec = replace(spec, learning=replace(spec.learning, epochs=epochs))
    trained = train(images, DATA / "labels", out / "buildings.safetensors", spec=spec, progress=show)
    print_training(experiment, trained)
    flow = segment_apart(trained.checkpoint, experiment.scored, out / "results")
    rows = [score(report) for report in flow.reports]
    print_rows(rows, flow)
    return {
        "experiment": experiment.name,
        "training": {
            **asdict(replace(trained, history=())),
            "checkpoint": trained.checkpoint.name,
            "card": trained.card.to_json(),
            "history": [asdict(record) for record in trained.history],
        },
        "scenes": [asdict(row) for row in rows],
        "wall_s": round(flow.wall_s, 1),
        "peak_bytes": flow.peak_bytes,
    }


def segment_apart(checkpoint: Path, stems: Sequence[str], out: Path) -> FlowRun:
    """Segment scenes through the flow in a fresh process, so that its memory is that of segmenting alone."""
    settings = yaml.safe_load((CONFIGS / "segment-buildings.yaml").read_text())
    scenes = [str(DATA / "images" / f"{stem}.tif") for stem in stems]
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
        from flows.segment import segment_scenes

        start = time.perf_counter()
        state = segment_scenes(scenes=scenes, model=checkpoint, out=out, settings=settings, return_state=True)
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
    mask, labels = folder / report.outputs["mask"], DATA / "masks" / f"{report.scene}.tif"
    pixels = score_mask(mask, labels)
    found = geopandas.read_file(folder / report.outputs["polygons"], layer="polygons").geometry.values
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
        labelled=objects.truth,
        polygons=objects.found,
        seconds=sum(report.seconds.values()),
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
    with rasterio.open(DATA / "images" / f"{stem}.tif") as scene:
        frame = geopandas.read_file(DATA / "labels" / f"{stem.rsplit('_', 1)[0]}.geojson").to_crs(scene.crs)
        inside = shapely.intersection(shapely.make_valid(frame.geometry.values), shapely.box(*scene.bounds))
    return np.asarray(inside[shapely.area(inside) > 0], dtype=object)


def show(progress: TrainProgress) -> None:
    """A line at the end of each epoch."""
    if progress.step == progress.steps:
        best = "" if progress.best_iou is None else f", best IoU so far {progress.best_iou:.3f}"
        print(f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}{best}", flush=True)


def print_training(experiment: Experiment, trained: TrainReport) -> None:
    print(f"\n{experiment.name}: {', '.join(experiment.training)} at {trained.card.resolution_m:g} m")
    epochs, minutes, speed = len(trained.history), trained.seconds / 60, trained.pixels_per_second / 1e6
    print(
        f"{epochs} epochs in {minutes:.1f} min, {speed:.2f} Mpx/s; "
        f"held-out blocks: IoU {trained.best_iou:.3f} in epoch {trained.best_epoch}"
    )


def print_rows(rows: Sequence[Row], flow: FlowRun) -> None:
    print(
        "\n| scene | IoU | floor | precision | recall | object F1 | of a perfect mask | labelled | polygons | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        floor = "" if row.floor is None else f"{row.floor:.3f}"
        pixels = f"**{row.iou:.3f}** | {floor} | {row.precision:.3f} | {row.recall:.3f}"
        objects = f"{row.object_f1:.3f} | {row.perfect_f1:.3f} | {row.labelled} | {row.polygons}"
        print(f"| {row.scene} | {pixels} | {objects} | {row.seconds:.1f} |")
    print(f"\nflow: {flow.wall_s:.1f} s in all, peak memory {flow.peak_bytes / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
