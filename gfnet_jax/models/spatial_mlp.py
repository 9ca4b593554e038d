"""A linear layer over the tokens: the mixer of MLP-Mixer and ResMLP, as in the paper's table 6."""

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
    """Maps (batch, height, width, dim) of any float type to the same shape, float32."""
    batch, height, width, dim = tokens.shape
    rows = tokens.reshape(batch, height * width, dim).swapaxes(1, 2)
    mixed = linear(rows.reshape(-1, height * width), self.kernel[...], self.bias[...], self.dtype)
    mixed = mixed.reshape(batch, dim, height * width).swapaxes(1, 2)
    return mixed.reshape(batch, height, width, dim)

  @staticmethod
  def resize_params(
    params: dict[str, np.ndarray], before: tuple[int, int], after: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    """Interpolates weights over both grids as position embeddings are; no paper has a rule.

    A larger grid has more tokens to sum over, so the weights shrink in proportion: equal tokens
    keep their result.
    """
    if before == after:
      return params
    kernel = params["kernel"].reshape(*before, -1)
    kernel = resize_bicubic(kernel, after, align_corners=False)  # tokens that are read
    kernel = kernel.reshape(-1, *before).transpose(1, 2, 0)
    kernel = resize_bicubic(kernel, after, align_corners=False)  # tokens that are written
    kernel = kernel.reshape(np.prod(after), -1).T
    bias = resize_bicubic(params["bias"].reshape(before), after, align_corners=False)
    share = params["kernel"].dtype.type(np.prod(before) / np.prod(after))
    return {"kernel": kernel * share, "bias": bias.ravel()}
