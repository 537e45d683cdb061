"""Scenemill: georeferenced scenes in; seamless probability mosaics and whole polygons out.

The public names are imported on first use, so that `import pipeline` costs nothing and does not
import torch. Start reading at `pipeline.segment`.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "segment_scene": "pipeline.segment",
    "SegmentSpec": "pipeline.config",
    "ModelCard": "pipeline.model.card",
    "load_predictor": "pipeline.model.predictor.loading",
    "vectorize_mosaic": "pipeline.segment",
}

__all__ = ["ModelCard", "SegmentSpec", "load_predictor", "segment_scene", "vectorize_mosaic"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
