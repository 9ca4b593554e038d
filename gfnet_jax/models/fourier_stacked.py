"""Transforms for CPUs and GPUs: one array (batch, 2, ...), real parts before imaginary parts.

They multiply fastest by few and large matrices, with a copy of the matrix per image, of which
XLA makes none.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import PrecisionLike
from jax.typing import DTypeLike

from gfnet_jax.models import fourier_matrices as matrices
from gfnet_jax.models import fourier_paired as paired

Grid = tuple[int, int]


def fft(tokens: jax.Array, precision: PrecisionLike) -> tuple[jax.Array]:
  """By `jnp.fft`; (batch, 2, channels, height, columns)."""
  return (jnp.stack(paired.fft(tokens, precision), axis=1),)


def inverse_fft(spectrum: tuple[jax.Array], grid: Grid, precision: PrecisionLike) -> jax.Array:
  """Undoes `fft`."""
  return paired.inverse_fft((spectrum[0][:, 0], spectrum[0][:, 1]), grid, precision)


def separable(tokens: jax.Array, precision: PrecisionLike) -> tuple[jax.Array]:
  """Along the width, then along the height; (batch, 2, height, columns, channels)."""
  batch, height, width, channels = tokens.shape
  columns = width // 2 + 1
  matrix = matrices.width_pair(width, tokens.dtype).reshape(2 * columns, width)
  x = _product(matrix, tokens, precision)  # (batch, height, 2 * columns, channels)
  x = x.reshape(batch, 2 * height, columns * channels)
  x = _product(_height_matrix(height, x.dtype), x, precision)
  return (x.reshape(batch, 2, height, columns, channels),)


def inverse_separable(
  spectrum: tuple[jax.Array], grid: Grid, precision: PrecisionLike
) -> jax.Array:
  """Undoes `separable`."""
  batch, _, height, columns, channels = spectrum[0].shape
  x = spectrum[0].reshape(batch, 2 * height, columns * channels)
  x = _product(_height_matrix(height, x.dtype).T, x, precision)  # unitary: the transpose inverts
  x = x.reshape(batch, height, 2 * columns, channels)
  pair = matrices.inverse_width_pair(grid[1], x.dtype)
  return _product(np.concatenate(pair, axis=1), x, precision)


def dense(tokens: jax.Array, precision: PrecisionLike) -> tuple[jax.Array]:
  """Over all tokens at once; (batch, 2, height, columns, channels)."""
  batch, height, width, channels = tokens.shape
  matrix = matrices.grid_pair(height, width, tokens.dtype).reshape(-1, height * width)
  x = _product(matrix, tokens.reshape(batch, height * width, channels), precision)
  return (x.reshape(batch, 2, height, width // 2 + 1, channels),)


def inverse_dense(spectrum: tuple[jax.Array], grid: Grid, precision: PrecisionLike) -> jax.Array:
  """Undoes `dense`."""
  x = spectrum[0].reshape(spectrum[0].shape[0], -1, spectrum[0].shape[-1])
  pair = matrices.inverse_grid_pair(*grid, x.dtype)
  x = _product(np.concatenate(pair, axis=1), x, precision)
  return x.reshape(x.shape[0], *grid, x.shape[-1])


def _product(matrix: np.ndarray, x: jax.Array, precision: PrecisionLike) -> jax.Array:
  """Multiplies a matrix (m, n) with each of (..., n, c), which gives (..., m, c)."""
  # With one matrix for all, XLA would put m or the channels first and then transpose the result.
  copies = jnp.broadcast_to(matrix, (*x.shape[:-2], *matrix.shape))
  return jnp.matmul(copies, x, precision=precision)


def _height_matrix(height: int, dtype: DTypeLike) -> np.ndarray:
  """(2 * height, height * 2): the complex transform, from (row, part) to (part, row).

  The product along the width leaves real and imaginary part after the row, and its inverse
  expects them there.
  """
  real, imaginary = matrices.height_pair(height, dtype)
  pairs = np.array([[real, -imaginary], [imaginary, real]])  # (out, in, height, height)
  return pairs.transpose(0, 2, 3, 1).reshape(2 * height, 2 * height)
