from .card_markdown import card_page as card_page
from .overlays import ShownWindow as ShownWindow
from .overlays import picture_png as picture_png
