"""The trials of `benchmarks.accuracy`: each a module with `run(out, options) -> tables`."""
