"""Optimiser, training step, loop, checkpoints and evaluation."""
