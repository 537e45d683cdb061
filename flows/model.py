"""The model of a run, loaded once per process for all its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pipeline.config import SegmentSpec
from pipeline.model.predictor import LoadedModel
from pipeline.run import RunModels, load_models, models_of


def load_model(models: str | Sequence[str], spec: SegmentSpec) -> LoadedModel:
    """The model or models of a run, loaded once per process, and again when a file has changed."""
    wanted = models_of((models,) if isinstance(models, str) else models, spec)
    changed_ns = tuple(Path(path).stat().st_mtime_ns if Path(path).is_file() else None for path in wanted.paths)
    return _load(wanted, changed_ns)


@lru_cache(maxsize=1)
def _load(models: RunModels, changed_ns: tuple[int | None, ...]) -> LoadedModel:
    return load_models(models)
