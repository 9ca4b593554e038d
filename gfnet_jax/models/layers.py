"""The layers of a Global Filter Network, on grids of tokens (batch, H, W, C).

Parameters, norms, mixers' results and the residual stream are float32; `dtype` is the
type of the matrix products. With float64, everything is float64 (`products.sum_type`).
Names follow the official state dict (gfnet.py).
"""

import inspect
import math
import numbers

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.arguments import check_input
from gfnet_jax.models.dense import Linear, Mlp
from gfnet_jax.models.initializers import DRAWN, uniform_init
from gfnet_jax.models.layer_norm import LayerNorm
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.products import as_rows, sum_type
from gfnet_jax.names import look_up
from gfnet_jax.sharding import reshard


class Block(nnx.Module):
  """x + DropPath(gamma * MLP(LN(mixer(LN(x))))): one residual branch for both parts.

  Args:
    dim: channels.
    grid: (height, width) of the token grid.
    mlp_ratio: hidden channels of the MLP per channel.
    drop_path_rate: probability that a sample skips the branch in training.
    layer_scale_init: initial value of gamma; None builds the block without gamma.
    mixer: a name in `mixers.MIXERS`.
    backend: how the mixer computes its transforms.
    filter_precision: passed to the mixer as `precision` unless None.
    dtype: type of the matrix products.
    rngs: source of the initial weights.

  Raises:
    UserError: for an unknown mixer, backend or precision, a mixer without a precision if one is
      given, or an mlp_ratio without hidden channels.
  """

  def __init__(
    self,
    dim: int,
    grid: tuple[int, int],
    *,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.0,
    layer_scale_init: float | None = None,
    mixer: str = "global-filter",
    backend: str = "auto",
    filter_precision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if not isinstance(mlp_ratio, numbers.Real) or not 1 <= dim * mlp_ratio < math.inf:
      raise UserError(
        f"mlp_ratio is {mlp_ratio!r}, expected a number that makes hidden channels of {dim}"
      )
    if layer_scale_init is not None:
      self.gamma = nnx.Param(jnp.full((dim,), layer_scale_init, sum_type(dtype)))
    self.norm1 = LayerNorm(dim, dtype=dtype, rngs=rngs)
    # Called `filter` whatever the mixer: the official state dict and our checkpoints say so.
    make_mixer = look_up("mixer", mixer, MIXERS)
    options = {}
    if filter_precision is not None:
      if "precision" not in inspect.signature(make_mixer).parameters:
        raise UserError(
          f"filter_precision is {filter_precision!r}, but the mixer {mixer!r} takes no precision; "
          "leave it out"
        )
      options["precision"] = filter_precision
    self.filter = make_mixer(dim, *grid, backend=backend, dtype=dtype, rngs=rngs, **options)
    # While it is traced, NNX does not count a bare array as state.
    arrays = any(isinstance(value, jax.Array) for value in vars(self.filter).values())
    if arrays or nnx.to_flat_state(nnx.state(self.filter, nnx.Not(nnx.Param))):
      raise UserError(
        f"the mixer {mixer!r} holds arrays that are not nnx.Param, expected none (see mixers.py)"
      )
    self.mixer = mixer
    self.norm2 = LayerNorm(dim, dtype=dtype, rngs=rngs)
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
    """Maps tokens (batch, H, W, dim), float32, to the same shape; random if given a key.

    Args:
      x: the tokens.
      key: PRNG key of stochastic depth in training; None means inference.
      drop_path_rate: used in place of the block's own rate, which is a constant, when
        blocks are scanned over.
    """
    gamma = self.gamma[...] if self.has_layer_scale else None
    mixed = self.filter(self.norm1(x))
    if mixed.shape != x.shape or mixed.dtype != sum_type(x.dtype):
      raise UserError(
        f"the mixer {self.mixer!r} maps {x.shape} to {mixed.shape} of {mixed.dtype}, expected the "
        f"same shape of {sum_type(x.dtype)}"
      )
    branch = self.mlp(self.norm2(mixed), gamma).astype(x.dtype)
    if key is not None:
      rate = self.drop_path_rate if drop_path_rate is None else drop_path_rate
      branch = drop_path(branch, rate, key)
    return x + branch


def drop_path(branch: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
  """Stochastic depth (arXiv:1603.09382): zeroes whole samples and scales up the others.

  Args:
    branch: (batch, ...), any float type.
    rate: probability that a sample is zeroed, in [0, 1).
    key: PRNG key; the choice does not depend on how the batch is sharded.

  Returns:
    The branch, divided by 1 - rate where it is kept.
  """
  if isinstance(rate, float) and rate == 0:
    return branch
  shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
  keep = jax.random.bernoulli(key, jnp.asarray(1 - rate, DRAWN), shape)
  return jnp.where(keep, branch / (1 - rate), jnp.zeros_like(branch))


class PatchEmbed(nnx.Module):
  """Maps every patch of patch_size x patch_size linearly to one token.

  This is the official convolution with kernel = stride = patch_size, written as one
  matrix product: the rows of the kernel run over (patch row, patch column, channel).
  It serves as the stem and as the down-sampling between stages.

  Args:
    grid: (height, width) of the output, in tokens.
    patch_size: side of a patch, in pixels or tokens.
    in_dim: channels of the input.
    dim: channels of the output.
    dtype: type of the matrix product.
    rngs: source of the initial weights, uniform as PyTorch's default for a convolution.
  """

  def __init__(
    self,
    grid: tuple[int, int],
    patch_size: int,
    in_dim: int,
    dim: int,
    *,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    fan_in = patch_size * patch_size * in_dim
    init = uniform_init(fan_in)
    self.proj = Linear(fan_in, dim, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs)
    self.grid, self.patch_size, self.in_dim = grid, patch_size, in_dim

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, rows * patch, columns * patch, in_dim) to (batch, rows, columns, dim).

    Raises:
      UserError: if the height, width or channels are not what it was built for, or the
        images are no real numbers.
    """
    (rows, columns), patch = self.grid, self.patch_size
    expected = (rows * patch, columns * patch, self.in_dim)
    advice = "; use gfnet_jax.resize(model, image_size), or give the model a dynamic_size"
    check_input("the model got images", x, expected, advice)
    x = reshard(x, PartitionSpec(*jax.typeof(x).sharding.spec[:1]))  # splits the batch alone
    x = x.astype(self.proj.dtype)  # first: fewer bytes are to be put in order
    # One axis at a time: with an explicit sharding, JAX refuses to split two at once.
    x = x.reshape(-1, rows, patch, *x.shape[2:]).reshape(
      -1, rows, patch, columns, patch, self.in_dim
    )
    x = x.swapaxes(2, 3).reshape(-1, rows, columns, patch * patch * self.in_dim)
    tokens = self.proj(as_rows(x))
    return tokens.reshape(-1, rows, columns, tokens.shape[-1])
