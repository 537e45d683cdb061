from .card_markdown import card_page as card_page
from .overlays import PredictedWindow as PredictedWindow
from .overlays import overlay_png as overlay_png
