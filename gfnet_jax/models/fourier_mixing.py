"""FNet's mixing by a Fourier transform without parameters (arXiv:2105.03824)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.precision import check_filter_precision, filter_precision
from gfnet_jax.models.products import sum_type


class FourierMixing(nnx.Module):
  """The real part of the Fourier transform over tokens, as one sequence, and over channels.

  Neither is normalised, as in FNet: the norm behind it brings the tokens back to scale.
  Computed by matrix products, which XLA splits over devices, as it does not FFTs, and which
  are fast on TPUs, where FFTs are not.

  Args:
    dim: accepted because every mixer accepts it.
    height: likewise.
    width: likewise.
    backend: likewise.
    precision: of the transforms, see `filter_precision`.
    dtype: the transforms are float32, or float64 if it is that.
    rngs: accepted likewise; there are no weights.

  Raises:
    UserError: for an unknown precision.
  """

  def __init__(
    self,
    dim: int,
    height: int,
    width: int,
    *,
    backend: str,
    precision: str = "high",
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    check_filter_precision(precision)
    self.precision, self.dtype = precision, sum_type(dtype)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps (batch, height, width, dim) of any float type to the same shape, float32 or float64."""
    batch, height, width, dim = tokens.shape
    precision = filter_precision(self.precision, platform_of(tokens), self.dtype)
    product = functools.partial(jnp.einsum, precision=precision)
    channels, rows, columns = (
      matrix.astype(self.dtype)
      for matrix in (of_real(dim), of_complex(height), real_part(height, width))
    )
    # p and q count the real and the imaginary part.
    spectrum = product("bhwc,pcd->bphwd", tokens.astype(self.dtype), channels)
    spectrum = product("bphwc,pqhk->bqkwc", spectrum, rows)
    mixed = product("bpkwc,pkwl->blkc", spectrum, columns)
    return mixed.reshape(batch, height * width, dim).reshape(batch, height, width, dim)


@functools.cache
def of_real(size: int) -> np.ndarray:
  """(2, size, size): from real numbers to the two parts of their transform."""
  matrix = np.fft.fft(np.eye(size))
  return np.stack([matrix.real, matrix.imag])


@functools.cache
def of_complex(size: int) -> np.ndarray:
  """(2, 2, size, size): from the two parts of numbers to those of their transform."""
  real, imaginary = of_real(size)
  return np.array([[real, imaginary], [-imaginary, real]])


@functools.cache
def real_part(height: int, width: int) -> np.ndarray:
  """(2, height, width, width): along the rows of a grid, whose columns are transformed.

  Cooley and Tukey's second step: the transform of all tokens as one sequence has, at frequency
  k + height * l, the sum of exp(-2 pi i w (k + height * l) / tokens) times the k-th frequency of
  column w.
  """
  k, w, frequency = np.ogrid[:height, :width, :width]
  angle = 2 * np.pi / (height * width) * (w * (k + height * frequency) % (height * width))
  return np.stack([np.cos(angle), np.sin(angle)])
