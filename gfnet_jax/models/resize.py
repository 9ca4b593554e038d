"""Bicubic resizing of position embeddings and filters, exactly as PyTorch does it.

The official fine-tuning at another resolution (main_gfnet.py) interpolates with Keys'
kernel for a = -0.75, which `jax.image.resize` lacks: it has a = -0.5.
"""

import numpy as np

from gfnet_jax.models.products import sum_type

KEYS_A = np.float32(-0.75)


def resize_bicubic(table: np.ndarray, size: tuple[int, int], *, align_corners: bool) -> np.ndarray:
  """Interpolates over the first two axes; an unchanged size returns the values unchanged.

  Args:
    table: (height, width, ...), any float type.
    size: (height, width) of the result.
    align_corners: True makes the centres of the corner cells coincide (official for
      filters), False the outer edges (official for position embeddings).

  Returns:
    (*size, ...), float64 for a table of float64, else float32.
  """
  total = sum_type(table.dtype)  # products with the matrices are of float64
  for axis, (before, after) in enumerate(zip(table.shape[:2], size, strict=True)):
    if before != after:
      matrix = _interpolation_matrix(before, after, align_corners)
      table = np.moveaxis(np.tensordot(matrix, table, axes=(1, axis)), 0, axis)
  return table.astype(total, copy=False)


def resize_half_spectrum(weight: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """Interpolates a filter as the official fine-tuning does: its half spectrum, bicubically.

  Args:
    weight: (2, height, width // 2 + 1, channels), any float type.
    grid: (height, width) of the tokens that the result filters.

  Returns:
    (2, height, width // 2 + 1, channels) for that grid; of the type that `resize_bicubic` returns.
  """
  # The official order of the axes, (rows, columns, channels, 2): the same bits as there.
  weight = np.ascontiguousarray(np.moveaxis(weight, 0, -1))
  weight = resize_bicubic(weight, (grid[0], grid[1] // 2 + 1), align_corners=True)
  return np.moveaxis(weight, -1, 0)


def _interpolation_matrix(before: int, after: int, align_corners: bool) -> np.ndarray:
  """The weights of one axis, (after, before), float64; taps beyond the border are clamped.

  Positions and weights are rounded to float32 where PyTorch rounds them. Exact ones
  would change values of unit variance by up to 1.5e-5. Tables of float64 are resized by the
  same weights, as the official checkpoints are float32.
  """
  index = np.arange(after)
  if align_corners:
    position = index.astype(np.float32) * np.float32((before - 1) / max(after - 1, 1))
  else:
    position = _fused(index + 0.5, np.float32(before / after), -0.5)
  first = np.floor(position)
  t, one, two = position - first, np.float32(1), np.float32(2)
  weights = (_outer(t + one), _inner(t), _inner(one - t), _outer(two - t))
  matrix = np.zeros((after, before))
  for tap, weight in enumerate(weights, start=-1):
    np.add.at(matrix, (index, np.clip(first.astype(int) + tap, 0, before - 1)), weight)
  return matrix


def _inner(t: np.ndarray) -> np.ndarray:
  """Keys' kernel for 0 <= t <= 1."""
  return _fused(_fused(KEYS_A + 2, t, -(KEYS_A + 3)) * t, t, 1)


def _outer(t: np.ndarray) -> np.ndarray:
  """Keys' kernel for 1 <= t <= 2."""
  return _fused(_fused(_fused(KEYS_A, t, -5 * KEYS_A), t, 8 * KEYS_A), t, -4 * KEYS_A)


def _fused(a, b, c) -> np.ndarray:
  """a * b + c, rounded to float32 once, as by the fused instruction that PyTorch uses."""
  return (np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32)
