"""Different ways to compute one transform: the orthonormal real 2D DFT of token grids.

A spectrum is a tuple of arrays of the tokens' type, the batch first. CPUs and GPUs multiply
fastest with one array (batch, 2, ...) of real parts before imaginary parts; on a TPU, copying the
parts into one costs as much as a product, and they are two arrays (batch, ...). The grid and the
channels follow in an order, and in axes, of the backend's own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models import fourier_paired as paired
from gfnet_jax.models import fourier_stacked as stacked
from gfnet_jax.models.fourier_timings import TIMINGS

Spectrum = tuple[jax.Array, ...]
Grid = tuple[int, int]


class Backend(NamedTuple):
  """A transform and its inverse.

  Attributes:
    transform: maps tokens (batch, height, width, channels), float32 or float64, to their
      spectrum; its second argument is the precision of its products.
    invert: maps a spectrum, (height, width) and the precision back to tokens. Like
      `jnp.fft.irfft2`, it ignores the imaginary parts of the DC and Nyquist columns once
      the height is transformed back.
    axes: the order of (height, columns, channels) in a spectrum.
  """

  transform: Callable[[jax.Array, PrecisionLike], Spectrum]
  invert: Callable[[Spectrum, Grid, PrecisionLike], jax.Array]
  axes: tuple[int, int, int] = (0, 1, 2)


def choose_backend(
  name: str, shape: tuple[int, int, int], platform: str, dtype: DTypeLike = jnp.float32
) -> str:
  """Returns the name itself or, for "auto", the fastest for the most similar known shape.

  Args:
    name: a backend, or "auto".
    shape: (height, width, channels) of the tokens.
    platform: see `platform_of`.
    dtype: of the computation.

  Raises:
    UserError: as `check_backend`.
  """
  check_backend(name, dtype)
  known = TIMINGS.get(platform)
  if name != "auto":
    return name
  if known is None:
    return "fft"  # the reference, where nothing is known
  height, width, channels = shape

  def distance(candidate: tuple[int, int, int]) -> tuple[float, float]:
    tokens = candidate[0] * candidate[1]
    return abs(math.log(tokens / (height * width))), abs(math.log(candidate[2] / channels))

  times = known[min(known, key=distance)].milliseconds
  return min(times, key=times.get)


def check_backend(name: str, dtype: DTypeLike = jnp.float32) -> None:
  """Raises UserError for an unknown name, or one that does not compute in that type."""
  if name != "auto" and name not in BACKENDS:
    raise UserError(f"unknown backend {name!r}, expected auto or one of {', '.join(BACKENDS)}")
  if name == "fused" and dtype == jnp.float64:
    raise UserError(
      "backend is 'fused', which computes in float32 alone, but the model is float64; expected "
      f"auto or one of {', '.join(STACKED)}"
    )


def form(name: str, platform: str) -> Backend:
  """The backend of that name, other than the fused kernel, as it is fastest on a platform."""
  return (PAIRED if platform == "tpu" else STACKED)[name]


def parts(spectrum: Spectrum) -> tuple[jax.Array, jax.Array]:
  """The real and the imaginary parts of a spectrum of either kind."""
  if len(spectrum) == 2:
    return spectrum
  return spectrum[0][:, 0], spectrum[0][:, 1]


def like(spectrum: Spectrum, real: jax.Array, imaginary: jax.Array) -> Spectrum:
  """The spectrum of these parts, of the same kind as another one."""
  return (real, imaginary) if len(spectrum) == 2 else (jnp.stack([real, imaginary], axis=1),)


STACKED = {
  "fft": Backend(stacked.fft, stacked.inverse_fft, axes=(2, 0, 1)),
  "separable": Backend(stacked.separable, stacked.inverse_separable),
  "dense": Backend(stacked.dense, stacked.inverse_dense),
}
PAIRED = {
  "fft": Backend(paired.fft, paired.inverse_fft, axes=(2, 0, 1)),
  "separable": Backend(paired.separable, paired.inverse_separable),
  "dense": Backend(paired.dense, paired.inverse_dense),
}
# The fused kernel (fused_filter.py) transforms and multiplies in one; elsewhere than on a TPU it
# is interpreted, slowly. Nothing chooses it that was not measured on a device.
BACKENDS = (*STACKED, "fused")
