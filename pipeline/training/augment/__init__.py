"""Random changes of samples, sampled and applied."""
