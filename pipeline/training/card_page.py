"""The model card as a page."""

from __future__ import annotations

from pipeline.card import ModelCard


def card_page(card: ModelCard, *, checkpoint: str = "model.safetensors") -> str:
    """The page as Markdown."""
    return f"# {checkpoint}\n\nClasses: {', '.join(card.classes)}\n"
