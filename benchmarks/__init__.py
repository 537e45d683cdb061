"""Commands that print the figures the docs quote: `python -m benchmarks.<name>` from the repository root."""
