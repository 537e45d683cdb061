"""Model cache: the model of a run is loaded once per process and shared by its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pipeline.config import SegmentSpec
from pipeline.model.predictor import LoadedModel
from pipeline.run import RunModels, load_models, models_of


def load_model(models: str | Sequence[str], spec: SegmentSpec) -> LoadedModel:
    """The model or ensemble of a run, from the cache unless a file has changed."""
    run_models = models_of((models,) if isinstance(models, str) else models, spec)
    changed_ns = tuple(Path(path).stat().st_mtime_ns if Path(path).is_file() else None for path in run_models.paths)
    return _load(run_models, changed_ns)


@lru_cache(maxsize=1)
def _load(models: RunModels, changed_ns: tuple[int | None, ...]) -> LoadedModel:
    return load_models(models)
