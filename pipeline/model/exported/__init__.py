"""Networks exported by torch, read without executing their code."""
