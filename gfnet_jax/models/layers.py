"""The layers of a Global Filter Network, on grids of tokens (batch, H, W, C).

Parameters, norms, filters and the residual stream are float32; `dtype` is the type
of the matrix products. Names follow the official state dict (gfnet.py).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from gfnet_jax.errors import UserError
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.fourier_backends import choose_backend
from gfnet_jax.models.layer_norm import LayerNorm
from gfnet_jax.models.products import with_fast_gradient

Dtype = jax.typing.DTypeLike

# Official: truncated normal of std 0.02 cut at 100 sigma, which is a plain normal.
normal_init = nnx.initializers.normal(0.02)


def uniform_init(fan_in: int) -> nnx.initializers.Initializer:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the PyTorch default of a convolution."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class GlobalFilter(nnx.Module):
  """Mixes tokens by a learned filter in the frequency domain (paper, section 3.2).

  Equivalent to a depthwise circular convolution as large as the token grid.

  Args:
    dim: channels.
    height: rows of the token grid.
    width: columns of the token grid.
    backend: how to transform: "auto" or a name of `fourier_backends.BACKENDS`.
    rngs: source of the initial weights, N(0, 0.02^2) for both parts.

  Raises:
    UserError: for an unknown backend.
  """

  def __init__(self, dim: int, height: int, width: int, *, backend: str = "auto", rngs: nnx.Rngs):
    choose_backend(backend, (height, width, dim))  # for a mistake to show at once
    # Pairs first: a trailing axis of 2 would be padded to 128 lanes on a TPU.
    shape = (2, height, width // 2 + 1, dim)
    self.complex_weight = nnx.Param(normal_init(rngs.params(), shape, jnp.float32))
    self.grid, self.backend = (height, width), backend

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Filters (batch, height, width, dim) of any float type; returns float32.

    Raises:
      UserError: if the grid or the channels differ from the filter's.
    """
    expected = (*self.grid, self.complex_weight.shape[-1])
    if tokens.ndim != 4 or tokens.shape[1:] != expected:
      raise UserError(
        f"GlobalFilter got tokens of shape {tokens.shape}, "
        f"expected (batch, height, width, channels) = (batch, {', '.join(map(str, expected))})"
      )
    return global_filter(tokens.astype(jnp.float32), self.complex_weight[...], self.backend)


@jax.checkpoint  # else the erf of the widest array of the network is kept for the gradient
def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU of any shape and float type.

  With erf, as PyTorch computes it; the erfc of `jax.nn.gelu` costs more.
  """
  return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class Mlp(nnx.Module):
  """Two linear layers with the exact (erf) GELU between them."""

  def __init__(self, dim: int, hidden_dim: int, *, dtype: Dtype, rngs: nnx.Rngs):
    linear = functools.partial(nnx.Linear, kernel_init=normal_init, dtype=dtype, rngs=rngs)
    self.fc1 = linear(dim, hidden_dim)
    self.fc2 = linear(hidden_dim, dim)

  def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Maps (..., dim) to the same shape, multiplied by a scale (dim,) if there is one.

    The scale goes into the second layer: its gradient then comes from that of the
    kernel, without another pass over the tokens.
    """
    # One axis of tokens: XLA contracts several slowly in the gradient of the kernel.
    hidden = gelu(self.fc1(x.reshape(-1, x.shape[-1])))
    kernel, bias = self.fc2.kernel[...], self.fc2.bias[...]
    if scale is not None:
      kernel, bias = kernel * scale[None], bias * scale
    rows = hidden @ with_fast_gradient(kernel.astype(hidden.dtype))
    return (rows + bias.astype(hidden.dtype)[None]).reshape(x.shape)


class Block(nnx.Module):
  """x + DropPath(gamma * MLP(LN(GlobalFilter(LN(x))))): one residual for both parts.

  Args:
    dim: channels.
    grid: (height, width) of the token grid.
    mlp_ratio: hidden channels of the MLP per channel.
    drop_path_rate: probability with which a sample skips the branch in training.
    layer_scale_init: initial value of gamma; None builds the block without gamma.
    backend: of the filter's transforms.
    dtype: type of the matrix products.
    rngs: source of the initial weights.
  """

  def __init__(
    self,
    dim: int,
    grid: tuple[int, int],
    *,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    layer_scale_init: float | None = None,
    backend: str = "auto",
    dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if layer_scale_init is not None:
      self.gamma = nnx.Param(jnp.full((dim,), layer_scale_init, jnp.float32))
    self.norm1 = LayerNorm(dim, rngs=rngs)
    self.filter = GlobalFilter(dim, *grid, backend=backend, rngs=rngs)
    self.norm2 = LayerNorm(dim, rngs=rngs)
    self.mlp = Mlp(dim, int(dim * mlp_ratio), dtype=dtype, rngs=rngs)
    self.drop_path_rate = drop_path_rate
    self.has_layer_scale = layer_scale_init is not None

  def __call__(
    self,
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    drop_path_rate: jax.Array | None = None,
  ) -> jax.Array:
    """Maps (batch, H, W, dim) float32 to the same; stochastic if given a PRNG key.

    Args:
      x: the tokens.
      key: PRNG key of stochastic depth; None is inference.
      drop_path_rate: replaces the block's own, which is static, in a scan over blocks.
    """
    gamma = self.gamma[...] if self.has_layer_scale else None
    branch = self.mlp(self.norm2(self.filter(self.norm1(x))), gamma).astype(x.dtype)
    if key is not None:
      rate = self.drop_path_rate if drop_path_rate is None else drop_path_rate
      branch = drop_path(branch, rate, key)
    return x + branch


def drop_path(branch: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
  """Stochastic depth: zeroes whole samples with probability `rate`, scales the rest.

  Args:
    branch: (batch, ...), any float type.
    rate: probability in [0, 1).
    key: PRNG key; the mask does not depend on how the batch is sharded.

  Returns:
    The branch divided by 1 - rate where it is kept.
  """
  if isinstance(rate, float) and rate == 0:
    return branch
  shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
  keep = jax.random.bernoulli(key, 1 - rate, shape)
  return jnp.where(keep, branch / (1 - rate), jnp.zeros_like(branch))


class PatchEmbed(nnx.Module):
  """Maps every patch_size x patch_size patch linearly to a token.

  Equals the official convolution with kernel = stride = patch_size, written as one
  matrix product: rows of the kernel run over (patch row, patch column, channel).
  Serves as the stem and as the down-sampling between stages.

  Args:
    grid: (height, width) of the tokens that come out.
    patch_size: side of a patch in pixels or tokens.
    in_dim: channels that come in.
    dim: channels that come out.
    dtype: type of the matrix product.
    rngs: source of the initial weights, PyTorch's default for a convolution.
  """

  def __init__(
    self,
    grid: tuple[int, int],
    patch_size: int,
    in_dim: int,
    dim: int,
    *,
    dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
  ):
    fan_in = patch_size * patch_size * in_dim
    init = uniform_init(fan_in)
    self.proj = nnx.Linear(fan_in, dim, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs)
    self.grid, self.patch_size, self.in_dim = grid, patch_size, in_dim

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, rows * patch, columns * patch, in_dim) to (batch, rows, columns, dim).

    Raises:
      UserError: if the height, width or channels differ from what it was built for.
    """
    (rows, columns), patch = self.grid, self.patch_size
    expected = (rows * patch, columns * patch, self.in_dim)
    if x.ndim != 4 or x.shape[1:] != expected:
      raise UserError(
        f"the model got images of shape {x.shape}, expected (batch, height, width, channels) = "
        f"(batch, {', '.join(map(str, expected))}); create it with another image_size or resize"
      )
    x = x.reshape(-1, rows, patch, columns, patch, self.in_dim).swapaxes(2, 3)
    tokens = self.proj(x.reshape(-1, patch * patch * self.in_dim))
    return tokens.reshape(-1, rows, columns, tokens.shape[-1])
