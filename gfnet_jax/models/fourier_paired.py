"""Transforms for TPUs: real and imaginary parts in an array each.

Putting the parts into one array, or reshaping across the channels, would cost a TPU as much
as the products. The products along height and width, and those over all tokens, are written for
XLA to choose the layout of what is between them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gfnet_jax.models import fourier_matrices as matrices

Pair = tuple[jax.Array, jax.Array]
Grid = tuple[int, int]


def fft(tokens: jax.Array, precision: jax.lax.Precision) -> Pair:
  """By `jnp.fft`, in the type of the tokens; parts (batch, channels, height, columns)."""
  del precision
  # FFT libraries want the grid last. The spectrum stays that way: the filter is smaller, and
  # so cheaper to transpose.
  spectrum = jnp.fft.rfft2(jnp.moveaxis(tokens, -1, 1), norm="ortho")
  return spectrum.real, spectrum.imag


def inverse_fft(spectrum: Pair, grid: Grid, precision: jax.lax.Precision) -> jax.Array:
  """Undoes `fft`."""
  del precision
  return jnp.moveaxis(jnp.fft.irfft2(jax.lax.complex(*spectrum), s=grid, norm="ortho"), 1, -1)


def separable(tokens: jax.Array, precision: jax.lax.Precision) -> Pair:
  """Along the width, then along the height; parts (batch, height, columns, channels)."""
  product = _product("kw,bhwc->bhkc", precision)
  pair = matrices.width_pair(tokens.shape[2], tokens.dtype)
  real, imaginary = (product(matrix, tokens) for matrix in pair)
  product = _product("jh,bhkc->bjkc", precision)
  cos, sin = matrices.height_pair(tokens.shape[1], tokens.dtype)
  return (
    product(cos, real) - product(sin, imaginary),
    product(cos, imaginary) + product(sin, real),
  )


def inverse_separable(spectrum: Pair, grid: Grid, precision: jax.lax.Precision) -> jax.Array:
  """Undoes `separable`."""
  product = _product("hj,bjkc->bhkc", precision)
  real, imaginary = spectrum
  # Unitary and symmetric: the conjugate inverts.
  cos, sin = matrices.height_pair(grid[0], real.dtype)
  rows = (
    product(cos, real) + product(sin, imaginary),
    product(cos, imaginary) - product(sin, real),
  )
  pair = matrices.inverse_width_pair(grid[1], real.dtype)
  return _sum_of_products(_product("wk,bhkc->bhwc", precision), pair, rows)


def dense(tokens: jax.Array, precision: jax.lax.Precision) -> Pair:
  """Over all tokens at once; parts (batch, height * columns, channels)."""
  batch, height, width, channels = tokens.shape
  product = _product("kn,bnc->bkc", precision)
  rows = tokens.reshape(batch, height * width, channels)
  pair = matrices.grid_pair(height, width, tokens.dtype)
  real, imaginary = (product(matrix, rows) for matrix in pair)
  return real, imaginary


def inverse_dense(spectrum: Pair, grid: Grid, precision: jax.lax.Precision) -> jax.Array:
  """Undoes `dense`."""
  product = _product("nk,bkc->bnc", precision)
  pair = matrices.inverse_grid_pair(*grid, spectrum[0].dtype)
  rows = _sum_of_products(product, pair, spectrum)
  return rows.reshape(rows.shape[0], *grid, rows.shape[-1])


def _product(subscripts: str, precision: jax.lax.Precision) -> Callable[..., jax.Array]:
  return lambda matrix, x: jnp.einsum(subscripts, matrix, x, precision=precision)


def _sum_of_products(
  product: Callable[..., jax.Array], pair: np.ndarray, spectrum: Pair
) -> jax.Array:
  real, imaginary = map(product, pair, spectrum)
  return real + imaginary
