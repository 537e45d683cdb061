"""Evaluation: results and labels in, scores with intervals and a page out. Start reading at `evaluate`."""
