"""Draw the pictures of README and docs from the results of `make demo`.

    python docs/tools/pictures.py demo-out docs/images

writes `scene.jpg`, one part of the demo's scene before and after, and, where QGIS with its Python bindings is installed
(`apt-get install qgis python3-qgis xvfb`), `qgis.jpg`, the same part in QGIS itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from matplotlib.figure import Figure
from PIL import Image
from rasterio.windows import Window

PART = Window(1500, 1200, 240, 240)
"""The part of the town that is shown: roofs of several colours, a road, trees and shadows."""
WIDTH, HEIGHT, DPI = 1200, 432, 100
QUALITY = 78
INK, OUTLINE = "#1f2933", "#00e5ff"


def main(demo: Path, images: Path) -> None:
    """Draw all pictures that can be drawn here."""
    images.mkdir(parents=True, exist_ok=True)
    draw_scene(demo, images / "scene.jpg")
    if draw_qgis(demo, images / "qgis.jpg"):
        print(f"drawn: {images}")
    else:
        print(f"drawn: {images}, without qgis.jpg: QGIS is not installed")


def draw_scene(demo: Path, path: Path) -> None:
    """Draw scene, probability, and polygons on the scene side by side."""
    with rasterio.open(demo / "town.tif") as dataset:
        pixels = dataset.read((1, 2, 3), window=PART)
        transform = dataset.window_transform(PART)
    with rasterio.open(demo / "town" / "probability.tif") as dataset:
        probability = dataset.read(1, window=PART, masked=True) * dataset.scales[0]
    left, top = transform.c, transform.f
    right, bottom = transform @ (PART.width, PART.height)
    polygons = geopandas.read_file(demo / "town" / "polygons.gpkg", layer="polygons", bbox=(left, bottom, right, top))
    figure = Figure((WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3)
    extent = (left, right, bottom, top)
    axes[0].imshow(stretch(pixels), extent=extent, interpolation="lanczos")
    axes[1].imshow(probability, extent=extent, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    axes[2].imshow(stretch(pixels), extent=extent, interpolation="lanczos")
    polygons.plot(ax=axes[2], facecolor="none", edgecolor=OUTLINE, linewidth=1.6, aspect=None)
    for panel, title in zip(axes, ("scene", "probability of building", "polygons"), strict=True):
        panel.set(xlim=(left, right), ylim=(bottom, top), xticks=(), yticks=(), xlabel="", ylabel="")
        panel.set_title(title, fontsize=13, color=INK)
    figure.savefig(path, pil_kwargs={"quality": QUALITY, "optimize": True})


def stretch(pixels: np.ndarray) -> np.ndarray:
    """Bands of any brightness as a picture: the 1st to the 99th percentile from black to white."""
    low, high = np.percentile(pixels, (1, 99), axis=(1, 2), keepdims=True)
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    return (scaled.transpose(1, 2, 0) * 255).astype(np.uint8)


def draw_qgis(demo: Path, path: Path) -> bool:
    """Save the window of QGIS with scene and polygons; False where QGIS or a virtual display is not installed."""
    if not (shutil.which("qgis") and shutil.which("xvfb-run")):
        return False
    with rasterio.open(demo / "town.tif") as dataset:
        extent = ",".join(map(str, dataset.window_bounds(PART)))
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "qgis.png")
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "VIEW_OUT": str(raw), "VIEW_EXTENT": extent}
        environment.pop("PYTHONPATH", None)
        quiet = ["--nologo", "--noversioncheck", "--noplugins", "--profiles-path", folder]
        view = Path(__file__).with_name("qgis_view.py").resolve()
        environment["VIEW_DEMO"] = str(demo.resolve())
        display = ["xvfb-run", "--auto-servernum", "--server-args=-screen 0 1280x900x24"]
        subprocess.run([*display, "qgis", *quiet, "--code", str(view)], env=environment, check=True, timeout=300)
        with Image.open(raw) as picture:
            picture.convert("RGB").save(path, quality=QUALITY, optimize=True)
    return True


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
