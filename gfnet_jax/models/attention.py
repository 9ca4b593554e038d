"""Multi-head self-attention over the tokens (arXiv:1706.03762), as in DeiT (arXiv:2012.12877)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.platform import multiplies, platform_of
from gfnet_jax.models.products import linear, sum_type

HEAD_DIM = 64  # channels of a head in all of DeiT's models


class SelfAttention(nnx.Module):
  """Every token becomes a mean of projected tokens, weighted by how they match it.

  Heads have 64 channels, or more where 64 do not divide all channels. The weights of all pairs
  of tokens are held in memory: (batch, heads, tokens, tokens).

  Args:
    dim: channels.
    height: accepted because every mixer accepts it; the parameters do not depend on the grid.
    width: likewise.
    backend: likewise; nothing is transformed.
    dtype: type of the factors of the matrix products; softmax is float32, or float64 if it is that.
    rngs: source of the initial weights, N(0, 0.02^2); biases start at 0.
  """

  def __init__(
    self, dim: int, height: int, width: int, *, backend: str, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    options = dict(kernel_init=normal_init, param_dtype=sum_type(dtype), rngs=rngs)
    # They hold the parameters; the products are ours.
    self.qkv = nnx.Linear(dim, 3 * dim, **options)
    self.proj = nnx.Linear(dim, dim, **options)
    self.heads, self.dtype = count_heads(dim), dtype

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps (batch, height, width, dim) of any float type to the same shape, float32 or float64."""
    batch, height, width, dim = tokens.shape
    rows = tokens.reshape(-1, dim).astype(self.dtype)
    qkv = linear(rows, self.qkv.kernel[...], self.qkv.bias[...], self.dtype)
    qkv = qkv.reshape(batch, height * width, 3 * dim)
    qkv = qkv.reshape(batch, height * width, 3, self.heads, dim // self.heads)
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # (batch, heads, tokens, channels) each
    multiply = _product(jnp.dtype(self.dtype))
    scores = multiply(query * (dim // self.heads) ** -0.5, key.mT)
    mixed = multiply(jax.nn.softmax(scores), value).swapaxes(1, 2)
    rows = mixed.reshape(batch, height * width, dim).reshape(-1, dim).astype(self.dtype)
    mixed = linear(rows, self.proj.kernel[...], self.proj.bias[...], self.dtype)
    return mixed.reshape(tokens.shape)


def count_heads(dim: int) -> int:
  """The most heads that divide the channels and leave 64 or more to each; at least one."""
  return next(n for n in range(max(1, dim // HEAD_DIM), 0, -1) if dim % n == 0)


@functools.cache
def _product(dtype: jnp.dtype) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Products of (..., n, k) and (..., k, m) by the rules of `products.linear`."""
  total = sum_type(dtype)

  def rounded(x):
    if dtype == total or multiplies(dtype, platform_of(x)):
      return x.astype(dtype)
    info = jnp.finfo(dtype)  # multiplied as float32, which is faster there
    return jax.lax.reduce_precision(x.astype(total), info.nexp, info.nmant)

  def multiply(a, b):
    return jnp.matmul(a, b, preferred_element_type=total)

  def forward(a, b):
    a, b = rounded(a), rounded(b)
    return multiply(a, b), (a, b)

  def push_forward(residuals, tangents):
    (a, b), (of_a, of_b) = residuals, map(rounded, tangents)
    return multiply(of_a, b) + multiply(a, of_b)

  def pull_back(residuals, gradient):
    (a, b), gradient = residuals, rounded(gradient)
    return multiply(gradient, b.mT), multiply(a.mT, gradient)

  return custom_gradient(forward, push_forward, pull_back)
