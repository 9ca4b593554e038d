"""Weights in PyTorch's formats, in and out."""
