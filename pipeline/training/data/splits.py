"""Training, validation and test split by whole scenes or by blocks of scenes.

No pixel is in two parts. The split is never by random pixels or overlapping windows: neighbouring pixels are
correlated, so a score on neighbours of training pixels is biased (Roberts et al. 2017, Ecography 40:913).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import LabelError, SettingsError
from pipeline.training.data.blocks import Starts, clip, free_starts, overlap, plan_blocks
from pipeline.training.data.samples import LabelledData, SampleSource, presence
from pipeline.training.data.stratify import stratified_split
from pipeline.training.settings.data import MIN_BLOCK_SIZE, SplitSpec

log = logging.getLogger(__name__)

Kind = Literal["scenes", "blocks"]
"""The unit of the split: whole scenes, or blocks inside scenes."""
HeldOutBlock = tuple[SampleSource, Window]
"""A block of a scene, or all of it."""
MIN_SCENES_TO_HOLD_OUT = 10
"""With at least this many scenes, `auto` holds out whole scenes."""
MAX_SPLIT_ATTEMPTS = 16
"""Random splits by blocks that are tried until training windows fit between the held-out blocks."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """Part of a scene: all pixels outside its held-out blocks."""

    source: SampleSource
    held_out: tuple[Window, ...] = ()
    """Blocks that no core may overlap; disjoint."""

    @property
    def pixels(self) -> int:
        """Number of pixels outside held-out blocks, valid or not."""
        grid = self.source.scene.grid
        return int(grid.height * grid.width - sum(block.width * block.height for block in self.held_out))

    def starts(self, size: int) -> Starts:
        """The positions at which cores of side `size` may start."""
        return free_starts(self.source.scene.grid.shape, self.held_out, size)

    def free_pixels(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window, `(height, width)`, lie outside all held-out blocks."""
        free = np.ones((window.height, window.width), bool)
        for block in self.held_out:
            if overlap(window, block):
                common = clip(block, window)
                top, left = common.row_off - window.row_off, common.col_off - window.col_off
                free[top : top + common.height, left : left + common.width] = False
        return free


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training, validation and test part; no pixel is in two of them."""

    training: tuple[Area, ...]
    """Areas from which training windows are drawn."""
    validation: tuple[HeldOutBlock, ...]
    """Held-out blocks or whole scenes on which epoch and threshold are chosen; never empty."""
    test: tuple[HeldOutBlock, ...] = ()
    """Held-out blocks or whole scenes that are only scored; may be empty."""
    kind: Kind

    def as_record(self) -> dict[str, object]:
        """The split for the model card: of each part its scenes, its blocks and its share of all pixels."""
        pixels = {
            "training": sum(area.pixels for area in self.training),
            "validation": sum(block.width * block.height for _, block in self.validation),
            "test": sum(block.width * block.height for _, block in self.test),
        }
        training = [area.source.scene.id for area in self.training]
        scenes = {"training": training, "validation": _ids(self.validation), "test": _ids(self.test)}
        record: dict[str, object] = {"kind": self.kind}
        for part, ids in scenes.items():
            record[part] = {"scenes": ids, "share": round(pixels[part] / sum(pixels.values()), 4)}
        if self.kind == "blocks":
            record["blocks"] = {"validation": len(self.validation), "test": len(self.test)}
        return record


def split_data(data: LabelledData, spec: SplitSpec, *, seed: int, core_size: int) -> Split:
    """Split the data by scenes or by blocks; the same for the same data, settings and seed.

    The split is stratified: each class is held out in about the shares of the settings, over all scenes together.
    Training windows of side `core_size` px must fit between the held-out blocks.
    """
    many = len(data.sources) >= MIN_SCENES_TO_HOLD_OUT
    if spec.kind == "scenes" or data.validation or data.test or (spec.kind == "auto" and many):
        return _by_scenes(data, spec, seed)
    return _by_blocks(data.sources, spec, seed, core_size)


def check_validation(split: Split) -> None:
    """Raise LabelError when the validation part has no labelled object, since its IoU would be undefined."""
    if not any(presence(source, block).any() for source, block in split.validation):
        names = ", ".join(_ids(split.validation))
        raise LabelError(
            f"no labelled object lies in the validation part ({names}); choose other split.validation scenes"
        )


def _ids(parts: Iterable[HeldOutBlock]) -> list[str]:
    return list(dict.fromkeys(source.scene.id for source, _ in parts))


def _by_scenes(data: LabelledData, spec: SplitSpec, seed: int) -> Split:
    """Hold out the named scenes; where none is named for a part, scenes drawn from the rest."""
    named = dict.fromkeys(data.validation, 1) | dict.fromkeys(data.test, 2)
    part = np.array([named.get(source.scene.id, 0) for source in data.sources])
    if not data.validation:
        test_share = 0.0 if data.test else spec.test_share
        rest = np.flatnonzero(part == 0)
        part[rest] = _draw_scenes([data.sources[k] for k in rest], spec.validation_share, test_share, seed)
    chosen = [[s for s, k in zip(data.sources, part, strict=True) if k == wanted] for wanted in range(3)]
    if not chosen[0]:
        raise SettingsError(
            f"split.validation: all {len(part)} scenes are held out, none remains for training; name more images"
        )
    return Split(
        training=tuple(Area(source=s) for s in chosen[0]),
        validation=tuple((s, s.scene.grid.window) for s in chosen[1]),
        test=tuple((s, s.scene.grid.window) for s in chosen[2]),
        kind="scenes",
    )


def _draw_scenes(
    sources: Sequence[SampleSource], validation_share: float, test_share: float, seed: int
) -> NDArray[np.intp]:
    found = np.array([presence(s, s.scene.grid.window) for s in sources])
    parts, with_object = 3 if test_share else 2, int(found.any(axis=-1).sum())
    _check_any_object(with_object)
    if with_object < parts:
        raise SettingsError(
            f"split.kind: a split by scenes needs {parts} scenes with objects, one each for training, validation"
            f"{' and test' if test_share else ''}, but {with_object} of {len(sources)} have some; "
            "set split.kind=blocks, "
            f"{'or split.test_share=0 to do without a test, ' if test_share and with_object == 2 else ''}"
            "or name more images, or other split.test scenes"
        )
    return stratified_split(found, [validation_share, test_share], np.random.default_rng([seed, 0]))


def _by_blocks(sources: Sequence[SampleSource], spec: SplitSpec, seed: int, core_size: int) -> Split:
    blocks = _blocks(sources, spec.block_size)
    found = np.array([presence(source, block) for source, block in blocks])
    _check_any_object(int(found.any(axis=1).sum()))
    if found.any(axis=1).sum() < spec.parts:
        raise SettingsError(_too_few(sources, spec, found))
    rng = np.random.default_rng([seed, 0])

    # Held-out blocks may leave no space for a training window: then draw again.
    for _ in range(MAX_SPLIT_ATTEMPTS):
        part = stratified_split(found, [spec.validation_share, spec.test_share], rng)
        # Part 0 is training, 1 validation, 2 test.
        held = [block for block, k in zip(blocks, part, strict=True) if k]
        areas = [Area(source=s, held_out=tuple(block for owner, block in held if owner is s)) for s in sources]
        fitting = tuple(area for area in areas if area.starts(core_size).count)
        if fitting:
            break
    else:
        raise SettingsError(
            f"split.block_size: no training window, which covers {core_size} px, fits between held-out blocks of "
            f"{spec.block_size} px; use a larger split.block_size, a smaller samples.tile_size, or name validation "
            "scenes"
        )
    _log_unused(areas, fitting, core_size)
    validation, test = (tuple(b for b, k in zip(blocks, part, strict=True) if k == wanted) for wanted in (1, 2))
    return Split(training=fitting, validation=validation, test=test, kind="blocks")


def _blocks(sources: Sequence[SampleSource], size: int) -> list[HeldOutBlock]:
    return [(source, block) for source in sources for block in plan_blocks(source.scene.grid.shape, size)]


def _check_any_object(with_object: int) -> None:
    if not with_object:
        raise LabelError(
            "no pixel of any scene is labelled as one of the classes: check classes, class_map (what the values of "
            "masks and attributes mean; 255 is unlabelled unless class_map maps it) and labelled_area"
        )


def _too_few(sources: Sequence[SampleSource], spec: SplitSpec, found: NDArray[np.bool_]) -> str:
    with_object = int(found.any(axis=1).sum())
    ways = ["name scenes in split.validation"]
    if spec.test_share and with_object == 2:
        ways.insert(0, "set split.test_share=0 to do without a test")
    size = spec.block_size // 2
    while size >= MIN_BLOCK_SIZE:
        if sum(presence(*block).any() for block in _blocks(sources, size)) >= spec.parts:
            ways.insert(0, f"set split.block_size={size}")
            break
        size //= 2
    return (
        f"split.block_size: a split by blocks needs {spec.parts} blocks with objects, one each for training, validation"
        f"{' and test' if spec.test_share else ''}, but of {len(found)} block(s) of {spec.block_size} px only "
        f"{with_object} hold some; {', or '.join(ways)}"
    )


def _log_unused(areas: Sequence[Area], fitting: Sequence[Area], core_size: int) -> None:
    used = {id(area) for area in fitting}
    names = [area.source.scene.id for area in areas if id(area) not in used and area.pixels]
    if names:
        log.warning(
            "no training window is drawn from %s: no window of %d px fits between the held-out blocks there",
            ", ".join(names),
            core_size,
        )
