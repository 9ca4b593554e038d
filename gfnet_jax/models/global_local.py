"""HorNet's mixer: a global filter beside a small convolution (arXiv:2207.14284)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.errors import UserError
from gfnet_jax.models.convolution import depthwise_convolution
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.fourier_backends import check_backend
from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.layer_norm import LayerNorm
from gfnet_jax.models.precision import check_filter_precision
from gfnet_jax.models.products import sum_type
from gfnet_jax.models.resize import Array, Grid, resize_filter


class GlobalLocalFilter(nnx.Module):
  """Half of the channels pass a 3 x 3 convolution without bias, the other half a global filter.

  A norm goes before the halves, and another one behind them, whose channels alternate (official
  hornet.py of HorNet, GlobalLocalFilter).

  Args:
    dim: channels, an even number.
    height: rows of the token grid.
    width: columns of the token grid.
    backend: how the filter transforms: "auto" or a name in `fourier_backends.BACKENDS`.
    precision: of its transforms, see `filter_precision`.
    dtype: everything is float32, or float64 if it is that; nothing here is a matrix product of
      the model.
    rngs: source of the initial weights, N(0, 0.02^2).

  Raises:
    UserError: for an odd number of channels, or an unknown backend or precision.
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
    if dim % 2:
      raise UserError(
        f"the mixer 'global-local' got {dim} channels, expected an even number: half of them are "
        "filtered; choose another embed_dim"
      )
    total = sum_type(dtype)
    check_backend(backend, total)
    check_filter_precision(precision)
    shape = (2, height, width // 2 + 1, dim // 2)
    self.pre_norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
    self.kernel = nnx.Param(normal_init(rngs.params(), (3, 3, dim // 2), total))
    self.complex_weight = nnx.Param(normal_init(rngs.params(), shape, total))
    self.post_norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
    self.grid, self.backend, self.precision = (height, width), backend, precision

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps (batch, height, width, dim) of any float type to the same shape, float32 or float64."""
    kernel = self.kernel[...]
    near, far = jnp.split(self.pre_norm(tokens).astype(kernel.dtype), 2, axis=-1)
    near = depthwise_convolution(near, kernel, jnp.zeros_like(kernel[0, 0]))
    far = global_filter(far, self.complex_weight[...], self.backend, self.precision)
    return self.post_norm(jnp.stack([near, far], axis=-1).reshape(tokens.shape))

  @staticmethod
  def resize_params(
    params: dict[str, Array], before: Grid, after: Grid, rule: str = "official"
  ) -> dict[str, Array]:
    """Resizes the filter as the global filter is."""
    weight = resize_filter(params["complex_weight"], before, after, rule)
    return params | {"complex_weight": weight}
