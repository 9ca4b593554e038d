"""Dense layers: one, and two with the GELU between them.

Parameters, sums and results are float32; `dtype` is the type of the factors of the products. With
float64, everything is float64 (`products.sum_type`). Names follow the official state dict.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.platform import platform_of
from gfnet_jax.models.products import as_rows, linear, sum_type


class Linear(nnx.Module):
  """A dense layer; its product and gradient are those of `products.linear`.

  Args:
    in_features: channels in.
    out_features: channels out.
    kernel_init: of the kernel (in_features, out_features).
    bias_init: of the bias (out_features,).
    dtype: type of the factors of the matrix product.
    rngs: source of the initial weights.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    kernel_init: nnx.Initializer = normal_init,
    bias_init: nnx.Initializer = nnx.initializers.zeros,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    total = sum_type(dtype)
    self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), total))
    self.bias = nnx.Param(bias_init(rngs.params(), (out_features,), total))
    self.in_features, self.out_features, self.dtype = in_features, out_features, dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (..., in_features) of any float type to (..., out_features), float32."""
    return linear(x, self.kernel[...], self.bias[...], self.dtype)


def gelu(x: jax.Array) -> jax.Array:
  """The exact GELU of an array of any shape and float type, computed in float32.

  Written with erf, as in PyTorch; `jax.nn.gelu` uses erfc, which costs more.
  """
  x = x.astype(sum_type(x.dtype))
  return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class Mlp(nnx.Module):
  """Two linear layers with the exact (erf) GELU between them.

  Args:
    dim: channels in and out.
    hidden_dim: channels between the layers.
    dtype: type of the factors of the matrix products.
    rngs: source of the initial weights, N(0, 0.02^2); biases start at 0.
  """

  def __init__(self, dim: int, hidden_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.fc1 = Linear(dim, hidden_dim, dtype=dtype, rngs=rngs)
    self.fc2 = Linear(hidden_dim, dim, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Maps (..., dim) to the same shape, float32, multiplied by a scale (dim,) if one is given.

    The scale is multiplied into the second layer: its gradient then follows from the
    kernel's, without another pass over the tokens.
    """
    # What passes between the products is of the factors' type, too: half the bytes.
    before = self.fc1(as_rows(x).astype(self.fc1.dtype)).astype(self.fc2.dtype)
    kernel, bias = self.fc2.kernel[...], self.fc2.bias[...]
    if scale is not None:
      kernel, bias = kernel * scale[None], bias * scale
    return _activated_product(jnp.dtype(self.fc2.dtype))(before, kernel, bias).reshape(x.shape)


@functools.cache
def _activated_product(dtype: jnp.dtype) -> Callable[..., jax.Array]:
  """The GELU and the product behind it, of what is before both, kernel and bias.

  The gradient computes the GELU again, so that of the network's widest arrays one is kept. On a
  GPU two are, which saves writing the other again.
  """

  def activate(before):
    return gelu(before).astype(dtype)

  def multiply(hidden, kernel, bias):
    return linear(hidden, kernel, bias, dtype)

  def forward(*arguments):
    before, *layer = arguments
    hidden = activate(before)
    kept = (hidden,) if platform_of(before) == "gpu" else ()
    return multiply(hidden, *layer), (*arguments, *kept)

  def push_forward(residuals, tangents):
    return jax.jvp(lambda x, *layer: multiply(activate(x), *layer), residuals[:3], tangents)[1]

  def pull_back(residuals, gradient):
    *arguments, kept = residuals if len(residuals) == 4 else (*residuals, None)
    # Without a barrier, XLA would keep the first GELU and its parts. GPUs and TPUs fuse what the
    # gradient is computed from with what follows: none may be between them.
    if platform_of(gradient) == "cpu":
      arguments, gradient = jax.lax.optimization_barrier((arguments, gradient))
    else:
      arguments = jax.lax.optimization_barrier(arguments)
    before, *layer = arguments
    hidden, pull_back_gelu = jax.vjp(activate, before)
    of_hidden, *of_layer = jax.vjp(multiply, hidden if kept is None else kept, *layer)[1](gradient)
    return *pull_back_gelu(of_hidden), *of_layer

  return custom_gradient(forward, push_forward, pull_back)
