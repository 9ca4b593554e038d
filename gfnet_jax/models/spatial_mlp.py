"""A linear layer over the tokens: the mixer of MLP-Mixer and ResMLP, as in the paper's table 6."""

import math

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.products import linear, sum_type
from gfnet_jax.models.resize import Array, Grid, resize_positions


class SpatialMlp(nnx.Module):
  """One learned linear map from all tokens to all tokens, the same for every channel.

  Args:
    dim: accepted because every mixer accepts it; channels do not meet.
    height: rows of the token grid.
    width: columns of the token grid.
    backend: accepted likewise; nothing is transformed.
    dtype: type of the factors of the matrix product.
    rngs: source of the initial weights, N(0, 0.02^2); the bias starts at 0.
  """

  def __init__(
    self, dim: int, height: int, width: int, *, backend: str, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    tokens, total = height * width, sum_type(dtype)
    self.kernel = nnx.Param(normal_init(rngs.params(), (tokens, tokens), total))
    self.bias = nnx.Param(nnx.initializers.zeros(rngs.params(), (tokens,), total))
    self.dtype = dtype

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps (batch, height, width, dim) of any float type to the same shape, float32 or float64."""
    batch, height, width, dim = tokens.shape
    rows = tokens.reshape(batch, height * width, dim).swapaxes(1, 2)
    mixed = linear(rows.reshape(-1, height * width), self.kernel[...], self.bias[...], self.dtype)
    mixed = mixed.reshape(batch, dim, height * width).swapaxes(1, 2)
    return mixed.reshape(batch, height, width, dim)

  @staticmethod
  def resize_params(
    params: dict[str, Array], before: Grid, after: Grid, rule: str = "official"
  ) -> dict[str, Array]:
    """The layer that resizes tokens to the old grid, mixes them there, and resizes them back.

    Tokens are resized as position embeddings are; no paper has a rule.
    """
    tokens = math.prod(after)
    to_old = np.eye(tokens, dtype=params["kernel"].dtype).reshape(*after, tokens)
    to_old = resize_positions(to_old, before, rule)
    kernel = to_old.reshape(-1, tokens).T @ params["kernel"]  # (tokens read, old tokens)
    kernel = resize_positions(kernel.T.reshape(*before, tokens), after, rule)
    bias = resize_positions(params["bias"].reshape(before), after, rule)
    return {"kernel": kernel.reshape(tokens, tokens).T, "bias": bias.ravel()}
