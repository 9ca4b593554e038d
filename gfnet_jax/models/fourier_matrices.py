"""The orthonormal real 2D DFT as matrices: along the width, along the height, of whole grids.

All are computed in float64 by `numpy.fft`, whose zeros are exact, and rounded to a type. Of a grid
(height, width), the half spectrum has `width // 2 + 1` columns. A pair holds the
matrices of the real and of the imaginary parts, (2, ...).
"""

import functools

import numpy as np
from numpy.typing import DTypeLike


@functools.cache
def width_pair(width: int, dtype: DTypeLike = np.float32) -> np.ndarray:
  """(2, columns, width): the real transform of a row."""
  return _pair(np.fft.rfft(np.eye(width), norm="ortho").T, dtype)


@functools.cache
def inverse_width_pair(width: int, dtype: DTypeLike = np.float32) -> np.ndarray:
  """(2, width, columns): what real and imaginary parts contribute to a row."""
  units = np.eye(width // 2 + 1)
  pair = [np.fft.irfft(unit * units, width, norm="ortho").T for unit in (1, 1j)]
  return np.stack(pair).astype(dtype)


@functools.cache
def height_pair(height: int, dtype: DTypeLike = np.float32) -> np.ndarray:
  """(2, height, height): the complex transform of a column; symmetric and unitary."""
  return _pair(np.fft.fft(np.eye(height), norm="ortho"), dtype)


@functools.cache
def grid_pair(height: int, width: int, dtype: DTypeLike = np.float32) -> np.ndarray:
  """(2, height * columns, height * width): the real transform of a whole grid."""
  tokens = height * width
  units = np.eye(tokens).reshape(tokens, height, width)
  return _pair(np.fft.rfft2(units, norm="ortho").reshape(tokens, -1).T, dtype)


@functools.cache
def inverse_grid_pair(height: int, width: int, dtype: DTypeLike = np.float32) -> np.ndarray:
  """(2, height * width, height * columns): what the two parts contribute to a grid."""
  columns = width // 2 + 1
  units = np.eye(height * columns).reshape(-1, height, columns)
  pair = [np.fft.irfft2(unit * units, (height, width), norm="ortho") for unit in (1, 1j)]
  return np.stack([part.reshape(-1, height * width).T for part in pair]).astype(dtype)


def _pair(matrix: np.ndarray, dtype: DTypeLike) -> np.ndarray:
  return np.stack([matrix.real, matrix.imag]).astype(dtype)
