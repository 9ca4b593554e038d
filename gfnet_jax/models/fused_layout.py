"""How images, spectra and matrices of the fused kernel lie in memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.lax import PrecisionLike

from gfnet_jax.errors import UserError

LANES, SUBLANES = 128, 8  # of a tile in VMEM
MOST_IMAGES, MOST_TOKENS = 16, 6272  # per step; more images keep the matrix units busier


class Layout(NamedTuple):
  """How the images of one step lie in VMEM.

  Attributes:
    images: per step; divides the batch.
    height, width: of the grid of tokens.
  """

  images: int
  height: int
  width: int

  @property
  def columns(self) -> int:
    """Columns of the half spectrum."""
    return self.width // 2 + 1

  @property
  def pitch(self) -> int:
    """Rows of the scratch buffer per part of an image row's spectrum.

    A column is read with this stride, which is odd: its rows then lie in different banks.
    """
    return self.columns | 1

  @property
  def padded_height(self) -> int:
    """Rows of a column's real parts, and of its imaginary parts: whole tiles."""
    return round_up(self.height, SUBLANES)

  def tokens(self, row: jax.Array) -> pl.Slice:
    """Where a row of tokens is, counted over all images."""
    return pl.ds(row * self.width, self.width)

  def spectrum(self, row: jax.Array) -> pl.Slice:
    """Where the spectrum of a row of tokens is in the scratch buffer: real parts first."""
    return pl.ds(row * 2 * self.pitch, 2 * self.pitch)

  def column(self, image: int, column: jax.Array) -> pl.Slice:
    """Where a column of an image is there: (height, part)."""
    start = image * self.height * 2 * self.pitch + column
    return pl.ds(start, 2 * self.height, stride=self.pitch)


def choose_layout(shape: tuple[int, int, int, int]) -> Layout:
  """The layout for tokens (batch, height, width, channels).

  Raises:
    UserError: for a batch that is empty, or of a size that is not known.
  """
  batch, height, width, _ = shape
  if not isinstance(batch, int) or not batch:
    raise UserError(
      f"the fused filter got a batch of {batch}, expected a known size of at least 1; choose "
      "another backend"
    )
  most = max(1, min(MOST_IMAGES, MOST_TOKENS // (height * width)))
  images = max(n for n in range(1, most + 1) if batch % n == 0)
  return Layout(images, height, width)


def as_rows(tokens: jax.Array, layout: Layout) -> jax.Array:
  """(steps, tokens of a step, channels): without padding, mostly, unlike single images."""
  _, height, width, channels = tokens.shape
  return tokens.reshape(-1, layout.images * height * width, channels)


def as_columns(weight: jax.Array, layout: Layout) -> jax.Array:
  """(columns, 2, padded height, channels), as the kernels take it."""
  padding = layout.padded_height - layout.height
  return jnp.pad(weight.transpose(2, 0, 1, 3), ((0, 0), (0, 0), (0, padding), (0, 0)))


def count_passes(precision: PrecisionLike, *factors: jax.Array) -> int:
  """How many products of bfloat16 halves make one product with these factors."""
  if precision == jax.lax.Precision.DEFAULT:
    return 1
  # Bfloat16 has no low half.
  return 2 if factors and all(x.dtype == jnp.bfloat16 for x in factors) else 3


@functools.cache
def transform_matrices(layout: Layout, token_passes: int, passes: int) -> tuple[np.ndarray, ...]:
  """The orthonormal transforms along width and height, then their inverses, height first.

  Args:
    layout: of a step.
    token_passes: of bfloat16, for the first matrix, which multiplies tokens.
    passes: for the others.

  Returns:
    Four matrices in bfloat16, made wider by the number of passes. The first two map rows of
    (width,) to (part, column) and columns of (height, part) to (part, height).
  """
  _, height, width = layout
  columns, pitch, padded = layout.columns, layout.pitch, layout.padded_height
  width_in = np.zeros((2, pitch, width))  # (part, column) from (width,)
  spectrum = np.fft.rfft(np.eye(width), norm="ortho").T
  width_in[:, :columns] = spectrum.real, spectrum.imag
  width_out = np.zeros((width, 2, pitch))  # (width,) from (part, column)
  for part, unit in enumerate((1, 1j)):
    width_out[:, part, :columns] = np.fft.irfft(unit * np.eye(columns), width, norm="ortho").T
  height_in = np.zeros((2, padded, height, 2))  # (part, height) from (height, part)
  spectrum = np.fft.fft(np.eye(height), norm="ortho")
  height_in[0, :height] = np.stack([spectrum.real, -spectrum.imag], -1)
  height_in[1, :height] = np.stack([spectrum.imag, spectrum.real], -1)
  height_in = height_in.reshape(2 * padded, 2 * height)
  return (
    _widen(width_in.reshape(2 * pitch, -1), token_passes),
    _widen(height_in, passes),
    _widen(height_in.T, passes),  # unitary: the transpose is the inverse
    _widen(width_out.reshape(-1, 2 * pitch), passes),
  )


def _widen(matrix: np.ndarray, passes: int) -> np.ndarray:
  """The high half of a matrix, its low half and the high half again: as many as passes."""
  high = matrix.astype(jnp.bfloat16)
  low = (matrix - high.astype(np.float64)).astype(jnp.bfloat16)
  return np.concatenate([high, low, high][:passes], axis=1)


def round_up(number: int, multiple: int) -> int:
  """The smallest multiple that is no less than a number."""
  return -(-number // multiple) * multiple
