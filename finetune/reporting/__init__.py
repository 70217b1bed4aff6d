"""Events to a progress bar, JSON lines and TensorBoard."""
