"""Data sets, host-side transforms and the input pipeline."""
