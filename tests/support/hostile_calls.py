"""What a process does with a hostile scene, as plain text: for subprocesses and workers of a cluster."""

from __future__ import annotations

import rasterio
import rasterio._env

from pipeline.errors import ScenemillError
from pipeline.scene import describe_scene
from pipeline.storage import open_raster
from support.hostile_rasters import secret_of


def describe(address: str) -> str:
    """What the library says to a scene."""
    try:
        return f"accepted: {describe_scene(address).bands}"
    except ScenemillError as error:
        return f"{type(error).__name__}: {error}"


def open_with_gdal(good: str, path: str) -> str:
    """What GDAL itself makes of a scene once this process has opened another, with no check of ours."""
    open_raster(good).close()
    with rasterio.open(path, driver="GTiff") as dataset:
        flags = dataset.mask_flag_enums[0][0].name
        mask = dataset.read_masks(1) > 0
        drivers = ",".join(sorted(rasterio._env.GDALEnv().drivers()))
        return f"{flags} {mask.mean():g} {'SECRET' if b'SECRET' in secret_of(mask) else 'nothing'} {drivers}"
