"""Prefect flows: thin; what they do is in `pipeline`, how it is run and retried is here."""
