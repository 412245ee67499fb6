"""Training: the step, its parts, its state."""
