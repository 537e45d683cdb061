"""Raster sidecars: masks, overviews and metadata next to a raster, refused before GDAL opens what they name.

Only GDAL's own GeoTIFF masks and overviews are accepted. What they, or metadata files, name is found by `open_raster`.
GDAL reads metadata files whole, however large they are, so their size is bounded.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from rasterio import DatasetReader
from rasterio.errors import RasterioError

from pipeline.errors import SceneError
from pipeline.storage.files import check_regular
from pipeline.storage.formats.drivers import SELF_CONTAINED, open_raster, shown_path
from pipeline.storage.gdal import suppress_georef_warnings
from pipeline.storage.location import Location
from pipeline.storage.probe import FileFacts
from pipeline.storage.remote import check_metadata_size

RASTER_SUFFIXES = (".msk", ".ovr")
"""Suffixes, after a raster's whole name, of sidecars that are rasters themselves."""
WHOLE_SUFFIXES = (".msk", ".MSK", ".ovr", ".OVR", ".aux.xml", ".aux", ".AUX")
METADATA_SUFFIXES = (
    *(".tfw", ".tifw", ".tiffw", ".wld", ".tab", ".imd", ".rpb", ".rpc", ".pvl", ".pass", ".txt", ".xml"),
    *("_rpc.txt", "_mtl.txt", "_metadata.txt", "_metadata.xml"),
)
"""Suffixes of world files and of the metadata of satellites that GDAL reads; these replace the raster's own."""
STEM_SUFFIXES = (
    *(".aux", ".AUX", *METADATA_SUFFIXES, *(suffix.upper() for suffix in METADATA_SUFFIXES)),
    *("_MTL.txt", "_METADATA.txt"),
)
"""Names that GDAL tries in folders that it does not list, in the place of the raster's own suffix."""
MAX_LISTED = 1200
"""Entries of a folder that are looked at; GDAL lists folders of at most a thousand."""
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_sidecars(location: Location, facts: FileFacts) -> None:
    """Refuse sidecars of a scene that GDAL must not open; a remote one needs its GDAL environment entered.

    Raises:
        SceneError: a mask or overview is no TIFF, or names another file; metadata are too large; a sidecar is a pipe,
            socket or device.
    """
    if not location.is_remote:
        check_local_sidecars(Path(location.gdal_path))
    for suffix, start in facts.sidecars.items():
        if suffix.lower() in RASTER_SUFFIXES and start is not None:  # Without bytes: GDAL opens it as a TIFF, or not.
            _check_raster(location.gdal_path + suffix, f"{location}{suffix}", start)


def check_local_sidecars(raster: Path) -> None:
    """Refuse files next to a raster that GDAL must not open, or cannot; see `check_sidecars`."""
    whole = f"{raster.name}.".casefold()
    for path in _namesakes(raster):
        try:
            size = check_regular(path).st_size
            if path.name.lower().endswith((*METADATA_SUFFIXES, ".dim")):
                check_metadata_size(str(path), size)
            if path.name.casefold().startswith(whole) and path.name.lower().endswith(RASTER_SUFFIXES):
                with path.open("rb") as file:
                    start = file.read(4)
                _check_raster(str(path), str(path), start)
        except (FileNotFoundError, IsADirectoryError):  # GDAL does not open it either.
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                continue
            raise SceneError(
                f"{path}: cannot be read as a sidecar of {raster.name}: {error.strerror}; remove it, or correct it"
            ) from error


def check_files(dataset: DatasetReader, location: Location, facts: FileFacts) -> None:
    """Refuse an open raster that is read with files outside its folder, or with a mask of another size.

    Files of drivers that refer to others, such as VRT, may lie anywhere.

    Raises:
        SceneError: it has such a file or mask.
    """
    if location.is_remote and not facts.sidecars:
        return  # It has no other files, and GDAL's list of them costs a request.
    files = dataset.files
    if dataset.driver in SELF_CONTAINED:
        check_folder(files, location)
    for name in files:
        if name.lower() == f"{location.gdal_path}.msk".lower():
            with suppress_georef_warnings(), open_raster(name) as mask:
                (height, width), (rows, cols) = dataset.shape, mask.shape
            if (height, width) != (rows, cols):
                raise SceneError(
                    f"{location}: its mask {name.rpartition('/')[2]} has {rows} x {cols} px, but the scene has "
                    f"{height} x {width}; write it again, or remove it"
                )


def check_folder(files: Iterable[str], location: Location) -> None:
    """Refuse GDAL's list of a raster's files if one lies outside the raster's folder; see `check_files`."""
    folder = location.gdal_path.partition("?")[0] if location.is_remote else location.gdal_path
    folder = folder.rpartition("/")[0] + "/"
    for name in files:
        if name != location.gdal_path and not (name.startswith(folder) and ".." not in name.split("/")):
            raise SceneError(
                f"{location}: names a file outside its folder ({shown_path(name)[:100]!r}), which is not read; write "
                "the scene again as a plain GeoTIFF"
            )


def _namesakes(raster: Path) -> list[Path]:
    """Files next to a raster that GDAL may open by their names, in any case of letters where it lists the folder."""
    names = {raster.name + suffix for suffix in WHOLE_SUFFIXES} | {raster.stem + suffix for suffix in STEM_SUFFIXES}
    names |= _product_names(raster.stem)
    others = {name.casefold() for name in names}
    starts = tuple(f"{name}{mark}".casefold() for name in (raster.name, raster.stem) for mark in "._")
    # A folder that may be entered, but not listed, has the names above only.
    with suppress(OSError), os.scandir(raster.parent) as entries:
        listed = [entry.name for entry in islice(entries, MAX_LISTED)]
        names.update(name for name in listed if name.casefold() in others or name.casefold().startswith(starts))
    return [raster.with_name(name) for name in sorted(names - {raster.name})]


def _product_names(stem: str) -> set[str]:
    """Names of metadata files of a satellite's product that do not begin like its raster `stem`, as GDAL derives them.

    >>> {"LC8_MTL.txt", "HDR_B1.txt", "DIM_B1.XML"} <= _product_names("LC8_B1")
    True
    """
    scene, product = stem.rpartition("_")[0], re.sub(r"_R\d+C\d+$", "", stem)[4:]
    found = {f"{kind}{stem[skipped:]}" for kind in ("HDR", "RPC") for skipped in (3, 6)}  # ALOS
    found |= {"summary", f"{scene}_MTL", f"{scene}_RPC"}  # ALOS, Landsat
    names = {f"{name}{suffix}" for name in found for suffix in (".txt", ".TXT")} | {"SUMMARY.TXT"}
    names |= {f"{kind}_{each}.XML" for kind in ("DIM", "RPC") for each in (product, stem[4:])}  # Pleiades
    names |= {"metadata.dim", "METADATA.DIM", f"{scene}_metadata.xml", f"{scene}_METADATA.XML"}  # SPOT, RapidEye
    parts = stem.split(".")
    starts = (".".join(parts[:count]) for count in range(1, len(parts)))
    return names | {f"{start}{suffix}" for start in starts for suffix in (".pass", ".PASS", ".rpc", ".RPC")}  # EROS


def _check_raster(path: str, shown: str, start: bytes) -> None:
    """Refuse a mask or overview that is no TIFF, or that names another file.

    Args:
        path: GDAL's path of the sidecar.
        shown: its name for messages.
        start: its first four bytes.
    """
    if start not in _TIFF_STARTS:
        raise SceneError(
            f"{shown}: is no TIFF, so it is not read as a mask or overviews; remove it, or write it again as GeoTIFF"
        )
    try:
        with suppress_georef_warnings():
            open_raster(path).close()
    except RasterioError as error:
        raise SceneError(f"{shown}: cannot be opened as a TIFF: {error}; remove it, or write it again") from error
