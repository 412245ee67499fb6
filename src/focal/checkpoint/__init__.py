"""Checkpoints: files and series of them, weights in and out, and what a training needs to resume."""
