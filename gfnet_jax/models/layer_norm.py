"""Layer normalisation with a hand-written gradient, for speed and memory."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.products import (
  as_rows,
  per_channel,
  sum_over_channels,
  sum_per_channel,
  sum_type,
)

EPSILON = 1e-6  # official gfnet.py


class LayerNorm(nnx.Module):
  """Normalises the last axis (arXiv:1607.06450), with the official epsilon.

  Mean and variance are computed in float32, or in float64 if it is built with that, in two
  passes, as in PyTorch; on a GPU in one that is as accurate.
  Differentiable in reverse and in forward mode.

  Args:
    dim: channels.
    dtype: float64 makes parameters and results float64; with any other type they are float32.
    rngs: taken as by every layer; the scale starts at 1 and the bias at 0.
  """

  def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.dtype = total = sum_type(dtype)
    self.scale = nnx.Param(nnx.initializers.ones(rngs.params(), (dim,), total))
    self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (dim,), total))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (..., dim) of any float type to the same shape, float32 or float64."""
    rows, scale, bias = (array.astype(self.dtype) for array in (x, self.scale[...], self.bias[...]))
    return _layer_norm(as_rows(rows), scale, bias).reshape(x.shape)


def _forward(x, scale, bias):
  """Returns the result, and what the gradient needs."""
  if platform_of(x) == "gpu":
    mean, variance = _moments_in_one_pass(x)
    x = jax.lax.optimization_barrier(x)  # else XLA computes the residual stream again for each use
  else:
    mean, variance = _moments(x)
  factor = jax.lax.rsqrt(variance + EPSILON)
  normalised = (x - mean) * factor
  result = normalised * per_channel(scale, x) + per_channel(bias, x)
  return result, (x, mean, factor, scale)


def _moments(x):
  """Mean and variance over the last axis, which stays with size 1."""
  mean = x.mean(-1, keepdims=True)
  return mean, jnp.square(x - mean).mean(-1, keepdims=True)


@jax.custom_jvp
def _moments_in_one_pass(x):
  """The same by merging parts as Chan, Golub and LeVeque do (1979), as accurate as two passes.

  A GPU then reads the tokens once, or not at all where it has just computed them.
  """

  def merge(one, other):
    (n, mean, squares), (m, other_mean, other_squares) = one, other
    distance, share = other_mean - mean, m / jnp.maximum(n + m, 1)
    squares = squares + other_squares + jnp.square(distance) * n * share
    return n + m, mean + distance * share, squares

  zero = x.dtype.type(0)
  parts = jnp.ones_like(x), x, jnp.zeros_like(x)
  n, mean, squares = jax.lax.reduce(parts, (zero, zero, zero), merge, (x.ndim - 1,))
  return mean[..., None], (squares / n)[..., None]


@_moments_in_one_pass.defjvp
def _(primals, tangents):
  (x,), (tangent,) = primals, tangents
  mean, variance = _moments_in_one_pass(x)
  of_variance = 2 * ((x - mean) * tangent).mean(-1, keepdims=True)
  return (mean, variance), (tangent.mean(-1, keepdims=True), of_variance)


def _push_forward(residuals, tangents):
  x, mean, factor, scale = residuals
  x_tangent, scale_tangent, bias_tangent = tangents
  normalised = (x - mean) * factor
  centred = x_tangent - x_tangent.mean(-1, keepdims=True)
  changed = factor * (centred - normalised * (x_tangent * normalised).mean(-1, keepdims=True))
  scale, scale_tangent, bias_tangent = (
    per_channel(array, x) for array in (scale, scale_tangent, bias_tangent)
  )
  return changed * scale + normalised * scale_tangent + bias_tangent


def _pull_back(residuals, gradient):
  """Ioffe and Szegedy's gradient (arXiv:1502.03167, section 3), here over channels."""
  # Without the barrier, XLA's CPU compiler merges this with the forward pass and keeps two
  # arrays of the size of x until here. Other platforms were not measured.
  x, mean, factor, scale = jax.lax.optimization_barrier(residuals)
  normalised = (x - mean) * factor
  product = gradient * normalised
  weights = scale / len(scale)
  mean_gradient, mean_product = (sum_over_channels(rows, weights) for rows in (gradient, product))
  scaled = gradient * per_channel(scale, x)
  x_gradient = factor * (scaled - mean_gradient - normalised * mean_product)
  return x_gradient, *sum_per_channel(product, gradient)


_layer_norm = custom_gradient(_forward, _push_forward, _pull_back)
