"""GDAL driver allow-list: the formats that this process can open, and the only way to open rasters and vectors.

GDAL opens the mask, the overviews and the sources that a file names with any registered driver, whichever driver may
open the file itself. Therefore all other drivers are deregistered before anything is opened. rasterio and pyogrio each
have a GDAL of their own; both lists are global to the process, and only grow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import rasterio
import rasterio._env
import rasterio.io
from rasterio.env import env_ctx_if_needed, set_gdal_config

from pipeline.errors import SceneError, SettingsError
from pipeline.storage.location import check_utf8
from pipeline.text import without_secrets

log = logging.getLogger(__name__)

RASTER_DRIVERS = ("GTiff", "COG", "MEM", "Memory")
"""Drivers of the rasters that we write, and of the arrays that rasterio rasterizes and traces."""
VECTOR_DRIVERS = ("GPKG", "GeoJSON", "FlatGeobuf", "ESRI Shapefile", "MEM", "Memory")
"""Drivers of the vector files that we read and write; Parquet is read without GDAL."""
SELF_CONTAINED = {
    *(*RASTER_DRIVERS, *VECTOR_DRIVERS, "PNG", "JPEG", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID"),
    *("ECW", "MrSID", "JPEGXL", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "ENVI", "HFA", "NITF"),
}
"""Drivers whose files hold their own pixels; files of other drivers may name other files and addresses."""
_SKIP = "GDAL_SKIP"


class _Registry:
    """The registered drivers of one GDAL library."""

    def __init__(
        self,
        library: str,
        allowed: Iterable[str],
        *,
        registered: Callable[[], set[str]],
        register_except: Callable[[str], None],
    ) -> None:
        """Describe a library; nothing is called before `allow`.

        Args:
            library: its name, for messages.
            allowed: the drivers that are always allowed.
            registered: returns the names of the registered drivers.
            register_except: registers all drivers of the build except those of a comma-separated list.
        """
        self._library, self._allowed = library, frozenset(allowed)
        self._registered, self._register_except = registered, register_except
        self._lock = threading.RLock()
        self._build: set[str] = set()

    def allow(self, names: Iterable[str] = ()) -> None:
        """Register the allowed drivers and `names`, and deregister all others."""
        with self._lock:
            allowed = self._allowed.union(names)
            if self._build and allowed == self._allowed and self._registered() <= allowed:
                return
            self._restrict(allowed)

    def build(self) -> set[str]:
        """Names of all drivers of the library, registered or not."""
        self.allow()
        return self._build

    def _restrict(self, allowed: frozenset[str]) -> None:
        added = sorted(allowed - self._allowed - SELF_CONTAINED)
        # The first time no name is known, so all drivers are registered, and their names are those to skip. Later all
        # are there for milliseconds while one is added: another reason to check sidecars by their first bytes.
        for _ in range(2):
            self._register_except(",".join(sorted(self._build - allowed)))
            self._build |= self._registered()
            left = self._registered() - allowed
            if not left:
                break
        else:
            raise SettingsError(
                f"GDAL drivers of {self._library} cannot be removed: {', '.join(sorted(left))}; remove "
                f"their plugins, or install another release of {self._library}"
            )
        self._allowed = allowed
        if added:
            log.warning(
                "the GDAL driver(s) %s may open any file and address that a scene or its sidecar names, with the "
                "rights of this process; name only scenes whose writers you trust",
                ", ".join(added),
            )


def _rasterio_drivers() -> set[str]:
    return {*rasterio._env.GDALEnv().drivers()}


def _register_in_rasterio(skip: str) -> None:
    """Repeat rasterio's registration, which it does once, when the first Env is entered."""
    set_gdal_config(_SKIP, skip)
    rasterio._env._have_registered_drivers = False
    environment = rasterio._env.GDALEnv()
    environment.start()
    environment.stop()


def _pyogrio_drivers() -> set[str]:
    import pyogrio

    return {*pyogrio.list_drivers()}


def _register_in_pyogrio(skip: str) -> None:
    """Repeat pyogrio's registration, which it does once, when it is imported."""
    import pyogrio
    from pyogrio._ogr import _register_drivers

    pyogrio.set_gdal_config_options({_SKIP: skip})
    _register_drivers()


_RASTERS = _Registry(
    "rasterio", RASTER_DRIVERS, registered=_rasterio_drivers, register_except=_register_in_rasterio
)  # fmt: skip
_VECTORS = _Registry("pyogrio", VECTOR_DRIVERS, registered=_pyogrio_drivers, register_except=_register_in_pyogrio)


def allow_drivers(*names: str) -> None:
    """Allow more GDAL drivers to open rasters in this process, for as long as it lives.

    Scenemill does this for `reading.drivers`. A program that uses Scenemill as a library, and opens other formats with
    rasterio in the same process, names their drivers here before it opens them. A driver such as VRT opens any file
    and address that a scene, or its mask or overviews, names.

    Raises:
        SettingsError: other drivers cannot be removed.
    """
    _RASTERS.allow(names)


def known_drivers() -> set[str]:
    """Names of the raster drivers of this build, allowed or not."""
    return {*_RASTERS.build()}


def open_raster(
    path: str | Path, driver: str = "GTiff", reader: type[rasterio.io.DatasetReader] = rasterio.io.DatasetReader
) -> rasterio.DatasetReader:
    """Open a raster for reading with one driver, which is allowed from then on; others cannot open anything it names.

    Args:
        path: local, or GDAL's path of an address.
        driver: the GDAL driver.
        reader: class of the dataset.

    Raises:
        SceneError: its metadata name a file of overviews, or its name is not UTF-8.
        rasterio.errors.RasterioError: this driver cannot open it.
    """
    check_utf8(path)
    allow_drivers(driver)
    with env_ctx_if_needed():
        dataset = reader(str(path), driver=driver)
    # GDAL would open any path or address in this tag, once it looks for overviews or lists the dataset's files.
    overviews = dataset.get_tag_item("OVERVIEW_FILE", "OVERVIEWS")
    if overviews is not None:
        dataset.close()
        raise SceneError(
            f"{shown_path(path)}: its tag OVERVIEW_FILE names another file or address ({overviews[:100]!r}), which is "
            "not opened; remove the tag from the file or its .aux.xml"
        )
    return dataset


def shown_path(path: str | Path) -> str:
    """A path of GDAL as an address for messages, without secrets."""
    text = str(path).removeprefix("/vsicurl/").replace("/vsis3/", "s3://", 1)
    return without_secrets(text) if "://" in text else text


def create_raster(path: Path, **profile: object) -> rasterio.io.DatasetWriter:
    """Create a raster; `profile` as for `rasterio.open`, with its driver, which is allowed from then on."""
    allow_drivers(str(profile["driver"]))
    path.unlink(missing_ok=True)  # GDAL would open the old file, and what it names, to delete it.
    return rasterio.open(path, "w", **profile)


def import_pyogrio() -> ModuleType:
    """The module pyogrio, whose GDAL opens `VECTOR_DRIVERS` only.

    Raises:
        SettingsError: other drivers cannot be removed.
    """
    import pyogrio

    _VECTORS.allow()
    module: ModuleType = pyogrio
    return module
