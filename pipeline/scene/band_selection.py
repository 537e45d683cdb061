"""Band selection over several files, by name; files are opened only where a catalog does not name their bands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.errors import SceneError
from pipeline.scene.bands import BandFile, canonical_name
from pipeline.text import without_secrets

BandPlaces = dict[str, tuple[int, int]]
"""Name of a band -> index of its file, 1-based band number."""


def catalog_bands(file: BandFile) -> dict[str, int]:
    """`{name: 1-based number}` of the bands that a catalog names; of two equal names the first counts."""
    named: dict[str, int] = {}
    for number, name in enumerate(file.names, start=1):
        if name is not None:
            named.setdefault(name, number)
    return named


def apply_own_names(files: Sequence[BandFile], wanted: Sequence[str]) -> tuple[BandFile, ...]:
    """Rename bands to wanted names that no band has and that exactly one band has as its provider's own name."""
    forms = {canonical_name(name): name for name in wanted}
    taken = {canonical_name(name) for file in files for name in file.names if name}
    own = Counter(canonical_name(name) for file in files for name in file.own_names if name)
    found = {form: name for form, name in forms.items() if form not in taken and own[form] == 1}

    def called(name: str | None, own_name: str | None) -> str | None:
        is_wanted = name is not None and canonical_name(name) in forms
        return name if is_wanted or own_name is None else found.get(canonical_name(own_name), name)

    return tuple(
        replace(file, names=tuple(map(called, file.names, file.own_names))) if file.own_names else file
        for file in files
    )


def find_in_files(
    files: Sequence[BandFile],
    wanted: Sequence[str] | None,
    *,
    own_names: Callable[[BandFile], Mapping[str, int]],
    place: str,
) -> BandPlaces:
    """File and number of each band, in the order of `wanted`, or of the files when that is None.

    Names from the catalog take precedence over names in the files, and earlier files over later ones.

    Args:
        files: the files that the catalog lists.
        wanted: names of the bands that the model wants; None: all.
        own_names: opens a file and returns `{name: number}` of all its bands.
        place: for messages.
    """
    offered: dict[str, tuple[str, int, int]] = {}
    for index, file in enumerate(files):
        _offer(offered, index, catalog_bands(file))
    for index, file in enumerate(files):
        if wanted is None or (None in file.names and _missing(offered, wanted)):
            _offer(offered, index, own_names(file))
    if wanted is None:
        return {name: (index, number) for name, index, number in sorted(offered.values(), key=lambda one: one[1:])}
    if missing := _missing(offered, wanted):
        has = ", ".join(f"{name} ({without_secrets(files[index].location)})" for name, index, _ in offered.values())
        raise SceneError(
            f"{place}: the model needs band(s) {', '.join(missing)}, but the {len(files)} files of this scene offer "
            f"{has or 'none by name'}; name the bands in the catalog, e.g. by common_name"
        )
    return {name: offered[canonical_name(name)][1:] for name in wanted}


def _offer(offered: dict[str, tuple[str, int, int]], index: int, names: Mapping[str, int]) -> None:
    """Add the bands of a file under their canonical names, except names that are offered already."""
    taken = {place[1:] for place in offered.values()}
    for name, number in names.items():
        if (index, number) not in taken:
            offered.setdefault(canonical_name(name), (name, index, number))


def _missing(offered: Mapping[str, object], wanted: Sequence[str]) -> list[str]:
    return [name for name in wanted if canonical_name(name) not in offered]
