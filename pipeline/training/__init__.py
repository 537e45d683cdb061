"""Training: scenes and labels in, a checkpoint with its model card out. Start reading at `pipeline.training.loop`."""
