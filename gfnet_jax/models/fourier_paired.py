"""Transforms for TPUs: of a spectrum, real and imaginary parts are an array each.

Copying both into one array, or reshaping across the channels, would cost a TPU as much as the
products. A product over both parts takes them as a selection between them (`_stack`), which XLA
computes as it reads the factor; a sum of two products would write and read the first. The products
along height and width, and those over all tokens, are written for XLA to choose the layout of what
is between them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import PrecisionLike

from gfnet_jax.models import fourier_matrices as matrices

Pair = tuple[jax.Array, jax.Array]
Grid = tuple[int, int]


def fft(tokens: jax.Array, precision: PrecisionLike) -> Pair:
  """By `jnp.fft`, in the type of the tokens; parts (batch, channels, height, columns)."""
  del precision
  # FFT libraries want the grid last. The spectrum stays that way: the filter is smaller, and
  # so cheaper to transpose.
  spectrum = jnp.fft.rfft2(jnp.moveaxis(tokens, -1, 1), norm="ortho")
  return spectrum.real, spectrum.imag


def inverse_fft(spectrum: Pair, grid: Grid, precision: PrecisionLike) -> jax.Array:
  """Undoes `fft`."""
  del precision
  return jnp.moveaxis(jnp.fft.irfft2(jax.lax.complex(*spectrum), s=grid, norm="ortho"), 1, -1)


def separable(tokens: jax.Array, precision: PrecisionLike) -> Pair:
  """Along the width, then along the height; parts (batch, height, columns, channels)."""
  pair = matrices.width_pair(tokens.shape[2], tokens.dtype)
  both = _product("pkw,bhwc->bphkc", precision)(pair, tokens)
  cos, sin = matrices.height_pair(tokens.shape[1], tokens.dtype)
  of_parts = np.array([[cos, -sin], [sin, cos]])
  both = _product("qpjh,bphkc->bqjkc", precision)(of_parts, both)
  return both[:, 0], both[:, 1]


def inverse_separable(spectrum: Pair, grid: Grid, precision: PrecisionLike) -> jax.Array:
  """Undoes `separable`."""
  # Unitary and symmetric: the conjugate inverts.
  cos, sin = matrices.height_pair(grid[0], spectrum[0].dtype)
  of_parts = np.array([[cos, sin], [-sin, cos]])
  both = _product("qphj,bpjkc->bqhkc", precision)(of_parts, _stack(*spectrum))
  pair = matrices.inverse_width_pair(grid[1], both.dtype)
  return _product("pwk,bphkc->bhwc", precision)(pair, both)


def dense(tokens: jax.Array, precision: PrecisionLike) -> Pair:
  """Over all tokens at once; parts (batch, height * columns, channels)."""
  batch, height, width, channels = tokens.shape
  product = _product("kn,bnc->bkc", precision)
  rows = tokens.reshape(batch, height * width, channels)
  pair = matrices.grid_pair(height, width, tokens.dtype)
  real, imaginary = (product(matrix, rows) for matrix in pair)
  return real, imaginary


def inverse_dense(spectrum: Pair, grid: Grid, precision: PrecisionLike) -> jax.Array:
  """Undoes `dense`."""
  pair = matrices.inverse_grid_pair(*grid, spectrum[0].dtype)
  rows = _product("pnk,bpkc->bnc", precision)(pair, _stack(*spectrum))
  return rows.reshape(rows.shape[0], *grid, rows.shape[-1])


def _product(subscripts: str, precision: PrecisionLike) -> Callable[..., jax.Array]:
  return lambda matrix, x: jnp.einsum(subscripts, matrix, x, precision=precision)


def _stack(real: jax.Array, imaginary: jax.Array) -> jax.Array:
  """`jnp.stack` along axis 1, as a selection: a product computes it as it reads it."""
  part = jnp.arange(2).reshape(1, 2, *(1 for _ in real.shape[1:]))
  return jnp.where(part == 0, real[:, None], imaginary[:, None])
