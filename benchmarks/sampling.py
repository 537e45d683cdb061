"""Where the threads of a run spend their time: a sampler that looks at every thread's stack now and then.

A thread counts for the stage of the innermost function of `pipeline/` on its stack, and for `waiting` while its
innermost function of all is a lock, a queue or a sleep of the standard library.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pipeline

PIPELINE = Path(pipeline.__file__).parent
STANDARD = Path(threading.__file__).parent
WAITING = ("threading.py", "queue.py", "concurrent/futures/thread.py", "concurrent/futures/_base.py", "selectors.py")
STAGES: Mapping[str, tuple[str, ...]] = {
    "decode": ("scene.describe", "storage.gdal", "scene.validity", "inference.tiling.strips", "scene.resample"),
    "copy": ("inference.transfer",),
    "cut": ("inference.tile_input",),
    "network": (
        "model.predictor.compiled",
        "model.predictor.optimize",
        "model.predictor.protocol",
        "model.networks.unet",
        "model.networks.layers",
    ),
    "blend, quantise": ("inference.blend", "mosaic.levels"),
    "classify, encode": (
        "mosaic.writer",
        "mosaic.strips",
        "mosaic.classify",
        "mosaic.overviews",
        "inference.region.quicklook",
    ),
    "COG": ("mosaic.cog",),
    "check the precision": ("inference.precision_check",),
}
"""Stage -> modules of `pipeline/` that do its work; all others are `rest`."""
_STAGE_OF = {module: stage for stage, modules in STAGES.items() for module in modules}


class Sampler:
    """Seconds of all threads by stage, so far."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._samples: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._since = time.perf_counter()
        self._looks = 0
        self.wall_s = 0.0
        """Seconds sampled."""

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds of all threads together, waiting left out."""
        if not self._looks:
            return {}
        each = self.wall_s / self._looks
        return {stage: count * each for stage, count in self._samples.most_common() if stage != "waiting"}

    def run(self) -> None:
        """Look until `stop`."""
        own = threading.get_ident()
        while not self._stopped.wait(self._interval_s):
            self._looks += 1
            self._samples.update(stage_of(frame) for thread, frame in sys._current_frames().items() if thread != own)

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.wall_s = time.perf_counter() - self._since


@contextmanager
def sampled(interval_s: float = 0.004) -> Iterator[Sampler]:
    """Sample all threads of this process while the body runs."""
    sampler = Sampler(interval_s)
    thread = threading.Thread(target=sampler.run, name="sampler")
    thread.start()
    try:
        yield sampler
    finally:
        sampler.stop()
        thread.join()


def stage_of(frame: FrameType) -> str:
    """The stage that a thread is at, `waiting`, or `rest`."""
    innermost = Path(frame.f_code.co_filename)
    if innermost.is_relative_to(STANDARD) and str(innermost.relative_to(STANDARD)) in WAITING:
        return "waiting"
    step: FrameType | None = frame
    modules = []
    while step is not None:
        path = Path(step.f_code.co_filename)
        if path.is_relative_to(PIPELINE):
            modules.append(".".join(path.relative_to(PIPELINE).with_suffix("").parts))
        step = step.f_back
    if "inference.precision_check" in modules:
        return "check the precision"
    return next((_STAGE_OF[module] for module in modules if module in _STAGE_OF), "rest")
