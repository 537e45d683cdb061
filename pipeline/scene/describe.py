"""Scene description: a raster, or several raster files that hold its bands.

`describe_scene` reads headers once and resolves driver, bands, nodata, CRS and resolution, or refuses the
scene with the reason; `SceneReader` then reads windows of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.concurrency import map_concurrently
from pipeline.errors import SceneError, SettingsError, TransientError
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.scene.alignment import Layer, align_files, finest_file, group_layers
from pipeline.scene.band_selection import apply_own_names, catalog_bands, find_in_files
from pipeline.scene.bands import BandFile, offered_bands
from pipeline.scene.checks import find_bands, fingerprint
from pipeline.scene.file import SceneFile, describe_file, open_header
from pipeline.scene.georeference import resolve_grid
from pipeline.scene.spec import ReadingSpec, ReadingTerms, SceneSource
from pipeline.scene.validity import NodataWhen
from pipeline.storage import DOCUMENT_SUFFIXES, MAX_NAME_BYTES, Location, resolve_location

__all__ = ["ReadingSpec", "Scene", "SceneFile", "describe_scene", "remote_fingerprint"]

MAX_CONCURRENT_HEADERS = 8
"""Headers of a remote scene's files that are read concurrently."""

Fact = TypeVar("Fact")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Description of one scene; plain data, no open handle."""

    id: str
    """Name of the scene and of its output folder."""
    grid: RasterGrid
    """The pixel plane that is read: that of the file with the smallest pixels, or its resampled form."""
    files: tuple[SceneFile, ...]
    """The raster files that hold its bands, at least one; equal grids where they store the same pixels."""
    bands: tuple[str, ...]
    """Names of the bands read, in the model's order."""
    dtype: str
    """numpy name of the stored type, wide enough for all bands."""
    nodata_when: NodataWhen
    """Whether all bands or any band must hold nodata."""
    acquired: str | None = None
    """When it was taken, ISO 8601 in UTC; None when unknown."""

    @property
    def location(self) -> Location:
        """Where its first file lies, which stands for all of them in messages."""
        return self.files[0].location

    @property
    def band_numbers(self) -> tuple[int, ...]:
        """1-based number of each band in its file."""
        return self._of_each_band([file.band_numbers for file in self.files])

    @property
    def scales(self) -> tuple[float, ...]:
        """Scale of each band, 1 by default."""
        return self._of_each_band([file.scales for file in self.files])

    @property
    def offsets(self) -> tuple[float, ...]:
        """Offset of each band, 0 by default."""
        return self._of_each_band([file.offsets for file in self.files])

    @property
    def nodata(self) -> tuple[float | None, ...]:
        """Nodata value of each band; None where there is none (NaN is always nodata)."""
        return self._of_each_band([file.nodata for file in self.files])

    @property
    def modified_ns(self) -> int | None:
        """Modification time of the file that changed last, None when one is remote."""
        times = [file.modified_ns for file in self.files]
        known = [time for time in times if time is not None]
        return max(known) if len(known) == len(times) else None

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The files grouped by their grids, with their mappings to the scene's grid."""
        return group_layers(self.files, self.bands, self.grid)

    @property
    def resampled(self) -> bool:
        """True when reading changes pixels of a file."""
        return not all(layer.rows.is_identity and layer.cols.is_identity for layer in self.layers)

    def _of_each_band(self, facts: Sequence[Sequence[Fact]]) -> tuple[Fact, ...]:
        """Facts of the bands of each file, in the order of the scene's bands."""
        by_name = {
            name: fact
            for file, each in zip(self.files, facts, strict=True)
            for name, fact in zip(file.bands, each, strict=True)
        }
        return tuple(by_name[name] for name in self.bands)


def describe_scene(
    location: str | Path,
    spec: ReadingSpec | None = None,
    *,
    card: ModelCard | None = None,
    scene_id: str | None = None,
    source: SceneSource | None = None,
) -> Scene:
    """Read a scene's headers and resolve how it is read, or refuse it.

    Args:
        location: a path, or an `s3://`, `https://` or `http://` address; names the scene where `source` lists files.
        spec: corrections and permissions.
        card: the model that will see it; None takes every band that is not alpha.
        scene_id: name of the scene; the file's stem when None.
        source: what a catalog knows of it; of its files only those with bands of the model are opened.

    Raises:
        SceneError: the scene cannot be processed correctly, or does not fit the model.
        DamagedSceneError: a header cannot be decoded.
        TransientError: a remote file cannot be reached.
    """
    spec, source = spec or ReadingSpec(), source or SceneSource()
    place = resolve_location(location, source.rules)
    name = _folder_name(scene_id or place.stem)
    files = apply_own_names(source.files, card.bands) if card is not None else source.files
    # Several files are aligned by their georeferencing.
    terms = ReadingTerms(spec=spec, card=card, georeferenced=source.georeferenced or len(files) > 1, rules=source.rules)
    if len(files) > 1:
        found, bands = _describe_files(files, place, terms)
    else:
        found = (_describe_whole(place, terms, files[0] if files else None),)
        bands = found[0].bands
    # The scene has the grid of its finest file; the others are resampled.
    finest = finest_file(found)
    return Scene(
        id=name,
        grid=resolve_grid(finest.grid, spec, card, finest.location),
        files=found,
        bands=bands,
        dtype=np.result_type(*(file.dtype for file in found)).name,
        nodata_when=spec.nodata_when,
        acquired=source.acquired or next((file.acquired for file in found if file.acquired), None),
    )


def remote_fingerprint(place: Location, drivers: Sequence[str]) -> str:
    """Current fingerprint of a remote file, from its header and its server's version; see `checks.fingerprint`.

    Raises:
        SceneError: no raster that these drivers open, or a damaged one.
        TransientError: the network fails.
    """
    with open_header(place, drivers, without_sidecars=True) as file:
        return fingerprint(file.dataset, file.facts.version)


def _describe_whole(place: Location, terms: ReadingTerms, listed: BandFile | None) -> SceneFile:
    """Describe the only file of a scene: the one that a catalog names, else the one at its location."""
    place = resolve_location(listed.location, terms.rules) if listed else place
    with open_header(place, terms.spec.drivers) as file:
        numbers = find_bands(file.dataset, terms.spec, terms.card, place, catalog_bands(listed) if listed else None)
        return describe_file(file, terms, numbers, listed)


def _describe_files(
    files: Sequence[BandFile], place: Location, terms: ReadingTerms
) -> tuple[tuple[SceneFile, ...], tuple[str, ...]]:
    """Describe the files that are needed, on one grid; returns them and their band names in the model's order."""
    if terms.spec.bands:
        raise SceneError(
            f"{place}: reading.bands numbers the bands of one file, and this scene has {len(files)}; leave the setting "
            "out, the catalog names their bands"
        )

    # Which file has which band; files without a wanted band are not described.
    wanted = terms.card.bands if terms.card else None
    found = find_in_files(files, wanted, own_names=partial(_own_names, terms=terms), place=str(place))
    needed = sorted({index for index, _ in found.values()})
    is_remote = any("://" in files[index].location for index in needed)

    def describe(index: int) -> SceneFile:
        numbers = {name: number for name, (of, number) in found.items() if of == index}
        return _describe_part(files[index], numbers, terms)

    return align_files(
        [*map_concurrently(describe, needed, max_workers=MAX_CONCURRENT_HEADERS if is_remote else 1)]
    ), tuple(found)


def _describe_part(listed: BandFile, numbers: Mapping[str, int], terms: ReadingTerms) -> SceneFile:
    """One of several files."""
    with open_header(resolve_location(listed.location, terms.rules), terms.spec.drivers) as file:
        return describe_file(file, terms, numbers, listed)


def _own_names(listed: BandFile, terms: ReadingTerms) -> dict[str, int]:
    """`{name: 1-based number}` of all bands of one of several files: its descriptions, else the file's own name.

    Colour interpretations are left out: that of a single band is always grey.
    """
    place = resolve_location(listed.location, terms.rules)
    with open_header(place, terms.spec.drivers) as file:
        dataset = file.dataset
        kinds = ["alpha" if interp.name == "alpha" else "undefined" for interp in dataset.colorinterp]
        stems = [f"{place.stem}_{n + 1}" for n in range(dataset.count)] if dataset.count > 1 else [place.stem]
        plain = [text or stem for text, stem in zip(dataset.descriptions, stems, strict=True)]
    return offered_bands(plain, kinds, explicit=catalog_bands(listed), use_alpha=bool(terms.spec.ignore_alpha))


def _folder_name(name: str) -> str:
    """Check a name that becomes a folder: it must not lead outside the parent folder."""
    if name in ("", ".", "..") or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise SettingsError(f"scene_id must be the plain name of a visible folder, not {name!r}")
    if name.lower().endswith(DOCUMENT_SUFFIXES) or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise SettingsError(
            f"scene_id must have at most {MAX_NAME_BYTES} bytes in UTF-8 and not end in "
            f"{', '.join(DOCUMENT_SUFFIXES)}, as documents of a run do, not {name!r}"
        )
    return name


def check_unchanged(scene: Scene) -> None:
    """Check by size, time or fingerprint that the files of a scene have not changed since it was described.

    Raises:
        TransientError: one was replaced, changed or removed; a new description can be read.
    """
    for file in scene.files:
        if not _is_unchanged(file):
            raise TransientError(
                f"{file.location}: was replaced, changed or removed while it was read, so nothing of it was published; "
                "run again when no process writes to it"
            )


def _is_unchanged(file: SceneFile) -> bool:
    place = file.location
    if place.is_remote:
        return remote_fingerprint(place, [file.driver]) == file.fingerprint
    try:
        stat = Path(place.gdal_path).stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (file.size_bytes, file.modified_ns)
