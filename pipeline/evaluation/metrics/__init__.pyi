from .matching import ObjectScore as ObjectScore
from .matching import PixelScore as PixelScore
from .matching import score_pixels as score_pixels
from .matching import score_polygons as score_polygons
