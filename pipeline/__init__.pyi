from .config import SegmentSpec as SegmentSpec
from .model.card import ModelCard as ModelCard
from .model.predictor.loading import load_predictor as load_predictor
from .segment import segment_scene as segment_scene
from .segment import vectorize_mosaic as vectorize_mosaic

__version__: str
