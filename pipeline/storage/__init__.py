"""Files, object stores and what moves between them."""
