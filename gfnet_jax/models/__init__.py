"""Global Filter Networks as Flax NNX modules."""
