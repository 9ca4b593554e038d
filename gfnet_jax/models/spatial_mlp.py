"""A linear layer over the tokens: the mixer of MLP-Mixer and ResMLP, as in the paper's table 6."""

import functools

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.products import linear, sum_type
from gfnet_jax.models.resize import resize_bicubic


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
    params: dict[str, np.ndarray], before: tuple[int, int], after: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    """The layer that resizes tokens to the old grid, mixes them there, and resizes them back.

    Tokens are resized as position embeddings are; no paper has a rule.
    """
    resize = functools.partial(resize_bicubic, align_corners=False)
    tokens = np.prod(after)
    to_old = resize(np.eye(tokens, dtype=params["kernel"].dtype).reshape(*after, tokens), before)
    kernel = to_old.reshape(-1, tokens).T @ params["kernel"]  # (tokens read, old tokens)
    kernel = resize(kernel.T.reshape(*before, tokens), after).reshape(tokens, tokens).T
    return {"kernel": kernel, "bias": resize(params["bias"].reshape(before), after).ravel()}
