"""Data augmentation: random geometric and photometric changes of training windows."""
