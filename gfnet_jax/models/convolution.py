"""Depthwise convolutions of tokens: the paper's local mixers (table 6)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.initializers import uniform_init
from gfnet_jax.models.products import sum_over_rows, sum_type


class DepthwiseConvolution(nnx.Module):
  """Mixes every token with its neighbours, each channel by weights of its own.

  A subclass states the size of the window; tokens beyond the border are zero.

  Args:
    dim: channels.
    height: accepted because every mixer accepts it; the parameters do not depend on the grid.
    width: likewise.
    backend: likewise; nothing is transformed.
    dtype: likewise, unless it is wider than float32: the weights are multiplied one by one,
      not in matrix products, and as accurately as those of the filter.
    rngs: source of the initial weights, uniform as PyTorch's default for a convolution.
  """

  size: int

  def __init__(
    self, dim: int, height: int, width: int, *, backend: str, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    init, total = uniform_init(self.size**2), sum_type(dtype)
    self.kernel = nnx.Param(init(rngs.params(), (self.size, self.size, dim), total))
    self.bias = nnx.Param(init(rngs.params(), (dim,), total))

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Convolves (batch, height, width, dim) of any float type; returns float32 or float64."""
    kernel = self.kernel[...]
    return depthwise_convolution(tokens.astype(kernel.dtype), kernel, self.bias[...])


class Convolution3(DepthwiseConvolution):
  """3 x 3 tokens."""

  size = 3


class Convolution5(DepthwiseConvolution):
  """5 x 5 tokens."""

  size = 5


class Convolution7(DepthwiseConvolution):
  """7 x 7 tokens."""

  size = 7


def depthwise_convolution(tokens: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Convolves every channel by itself, as PyTorch's Conv2d with as many groups as channels.

  Written as a sum of shifted tokens, which XLA fuses into one loop; on a CPU, its own
  depthwise convolution takes many times as long. Differentiable in reverse and in forward mode.

  Args:
    tokens: (batch, height, width, channels), float32 or float64.
    kernel: (size, size, channels) of the same type; an odd size, its centre acts on the token
      itself.
    bias: (channels,) of the same type.

  Returns:
    An array of the shape and type of the tokens.
  """
  return _convolve(tokens, kernel, bias)


def _sum_of_shifts(tokens: jax.Array, kernel: jax.Array) -> jax.Array:
  weights = kernel.reshape(-1, kernel.shape[-1])
  return sum(x * weights[i][None, None, None] for i, x in enumerate(_shifts(tokens, len(kernel))))


def _shifts(tokens: jax.Array, size: int) -> Iterator[jax.Array]:
  """The tokens that each weight of a window meets, row by row."""
  _, height, width, _ = tokens.shape
  padded = _pad(tokens, size)
  for i in range(size):
    for j in range(size):
      yield padded[:, i : i + height, j : j + width]


def _pad(tokens: jax.Array, size: int) -> jax.Array:
  border = (size // 2, size // 2)
  return jnp.pad(tokens, ((0, 0), border, border, (0, 0)))


def _forward(tokens, kernel, bias):
  return _sum_of_shifts(tokens, kernel) + bias[None, None, None], (tokens, kernel)


def _push_forward(residuals, tangents):
  tokens, kernel = residuals
  of_tokens, of_kernel, of_bias = tangents
  changed = _sum_of_shifts(of_tokens, kernel) + _sum_of_shifts(tokens, of_kernel)
  return changed + of_bias[None, None, None]


def _pull_back(residuals, gradient):
  tokens, kernel = residuals
  size, channels = len(kernel), kernel.shape[-1]
  padded = _pad(tokens, size)

  def of_weight(place: jax.Array) -> jax.Array:
    """(batch, channels). Images stay apart until the end, or devices would add up every weight."""
    met = jax.lax.dynamic_slice(padded, (0, place // size, place % size, 0), tokens.shape)
    return jax.vmap(sum_over_rows)((met * gradient).reshape(len(tokens), -1, channels))

  # A loop: one fused program for all weights would keep every product.
  of_weights = jax.lax.map(of_weight, jnp.arange(size**2))
  return (
    _sum_of_shifts(gradient, kernel[::-1, ::-1]),
    sum_over_rows(of_weights.swapaxes(0, 1)).reshape(kernel.shape),
    sum_over_rows(gradient.reshape(-1, channels)),
  )


_convolve = custom_gradient(_forward, _push_forward, _pull_back)
