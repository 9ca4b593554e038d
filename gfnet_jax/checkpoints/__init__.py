"""Checkpoints of runs and models."""
