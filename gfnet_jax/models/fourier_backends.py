"""Different ways to compute one transform: the orthonormal real 2D DFT of token grids.

A spectrum is (batch, 2, height, width // 2 + 1, channels), float32, real parts before
imaginary parts; every backend keeps its axes in an order of its own.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gfnet_jax.errors import UserError
from gfnet_jax.models.fourier_timings import MILLISECONDS


class Backend(NamedTuple):
  """A transform and its inverse.

  Attributes:
    transform: maps tokens (batch, height, width, channels), float32, to their spectrum.
    invert: maps a spectrum and the width back to tokens. Like `jnp.fft.irfft2`, it
      ignores the imaginary parts of the DC and Nyquist columns once the height is
      transformed back.
    axes: the order of a spectrum's axes after the batch, for `jnp.transpose`.
  """

  transform: Callable[[jax.Array], jax.Array]
  invert: Callable[[jax.Array, int], jax.Array]
  axes: tuple[int, ...] = (0, 1, 2, 3)


def choose_backend(name: str, shape: tuple[int, int, int]) -> str:
  """Returns the name itself or, for "auto", the fastest for the most similar measured shape.

  Args:
    name: a backend, or "auto".
    shape: (height, width, channels) of the tokens.

  Raises:
    UserError: for an unknown name.
  """
  if name != "auto":
    if name not in BACKENDS:
      raise UserError(f"unknown backend {name!r}, expected auto or one of {', '.join(BACKENDS)}")
    return name
  measured = MILLISECONDS.get(jax.default_backend())
  if measured is None:
    return "fft"  # the reference, where nothing was measured
  height, width, channels = shape

  def distance(candidate: tuple[int, int, int]) -> tuple[float, float]:
    tokens = candidate[0] * candidate[1]
    return abs(math.log(tokens / (height * width))), abs(math.log(candidate[2] / channels))

  times = measured[min(measured, key=distance)]
  return min(times, key=times.get)


def _fft(tokens: jax.Array) -> jax.Array:
  # FFT libraries want the grid last. The spectrum stays that way: the filter is smaller, and
  # so cheaper to transpose.
  spectrum = jnp.fft.rfft2(jnp.moveaxis(tokens, -1, 1), norm="ortho")
  return jnp.stack([spectrum.real, spectrum.imag], axis=1)


def _inverse_fft(spectrum: jax.Array, width: int) -> jax.Array:
  grid = (spectrum.shape[-2], width)
  spectrum = jax.lax.complex(spectrum[:, 0], spectrum[:, 1])
  return jnp.moveaxis(jnp.fft.irfft2(spectrum, s=grid, norm="ortho"), 1, -1)


def _separable(tokens: jax.Array) -> jax.Array:
  """Multiplies by one matrix along the width, then by another along the height."""
  batch, height, width, channels = tokens.shape
  columns = width // 2 + 1
  x = _product(_width_matrix(width), tokens)  # (batch, height, 2 * columns, channels)
  x = _product(_height_matrix(height), x.reshape(batch, 2 * height, columns * channels))
  return x.reshape(batch, 2, height, columns, channels)


def _inverse_separable(spectrum: jax.Array, width: int) -> jax.Array:
  batch, _, height, columns, channels = spectrum.shape
  x = spectrum.reshape(batch, 2 * height, columns * channels)
  x = _product(_height_matrix(height).T, x)  # unitary: the transpose is the inverse
  return _product(_inverse_width_matrix(width), x.reshape(batch, height, 2 * columns, channels))


def _dense(tokens: jax.Array) -> jax.Array:
  """Multiplies by one matrix over all tokens: more arithmetic, in fewer and larger steps."""
  batch, height, width, channels = tokens.shape
  x = _product(_grid_matrix(height, width), tokens.reshape(batch, height * width, channels))
  return x.reshape(batch, 2, height, width // 2 + 1, channels)


def _inverse_dense(spectrum: jax.Array, width: int) -> jax.Array:
  batch, _, height, columns, channels = spectrum.shape
  x = spectrum.reshape(batch, 2 * height * columns, channels)
  x = _product(_inverse_grid_matrix(height, width), x)
  return x.reshape(batch, height, width, channels)


def _product(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """Multiplies a matrix (m, n) with each of (..., n, c), which gives (..., m, c)."""
  # With one matrix for all, XLA would put m first and then transpose the result.
  return jnp.matmul(jnp.broadcast_to(matrix, (*x.shape[:-2], *matrix.shape)), x)


@functools.cache
def _width_matrix(width: int) -> np.ndarray:
  """(2 * columns, width): the real transform, whose zeros are exact in `numpy.fft`."""
  spectrum = np.fft.rfft(np.eye(width), norm="ortho").T
  return np.concatenate([spectrum.real, spectrum.imag]).astype(np.float32)


@functools.cache
def _inverse_width_matrix(width: int) -> np.ndarray:
  """(width, 2 * columns): the inverse of `_width_matrix`."""
  units = np.eye(width // 2 + 1)
  pair = [np.fft.irfft(unit * units, width, norm="ortho") for unit in (1, 1j)]
  return np.concatenate(pair).T.astype(np.float32)


@functools.cache
def _height_matrix(height: int) -> np.ndarray:
  """(2 * height, height * 2): the complex transform, from (row, part) to (part, row).

  The product along the width leaves real and imaginary part after the row, and its inverse
  expects them there.
  """
  spectrum = np.fft.fft(np.eye(height), norm="ortho")
  real, imaginary = spectrum.real, spectrum.imag
  pairs = np.array([[real, -imaginary], [imaginary, real]])  # (out, in, height, height)
  return pairs.transpose(0, 2, 3, 1).reshape(2 * height, 2 * height).astype(np.float32)


@functools.cache
def _grid_matrix(height: int, width: int) -> np.ndarray:
  """(2 * height * columns, height * width): the real transform of a whole grid."""
  tokens = height * width
  units = np.eye(tokens).reshape(tokens, height, width)
  spectrum = np.fft.rfft2(units, norm="ortho").reshape(tokens, -1).T
  return np.concatenate([spectrum.real, spectrum.imag]).astype(np.float32)


@functools.cache
def _inverse_grid_matrix(height: int, width: int) -> np.ndarray:
  """(height * width, 2 * height * columns): the inverse of `_grid_matrix`."""
  columns = width // 2 + 1
  units = np.eye(height * columns).reshape(-1, height, columns)
  pair = [np.fft.irfft2(unit * units, (height, width), norm="ortho") for unit in (1, 1j)]
  return np.concatenate(pair).reshape(-1, height * width).T.astype(np.float32)


BACKENDS = {
  "fft": Backend(_fft, _inverse_fft, axes=(0, 3, 1, 2)),
  "separable": Backend(_separable, _inverse_separable),
  "dense": Backend(_dense, _inverse_dense),
}
