"""Token mixers by name: the layer of a block through which the tokens of an image meet.

The global filter is here; the others of `MIXERS` have modules of their own. A new mixer is one
class in this file and one line in `MIXERS`; `create_model`, training, checkpoints, fine-tuning
and evaluation then know it as `mixer="its-name"`. The contract:

- Its constructor takes (dim, height, width, *, backend, dtype, rngs): the channels, the
  token grid, how to transform (see `fourier_backends.BACKENDS`), the type of matrix
  products, and the source of initial weights. It may ignore backend and dtype. If it takes
  `precision`, too, that is the model's `filter_precision` where one is given.
- A call maps tokens (batch, height, width, dim) of any float type to the same shape in
  float32 or, if dtype is float64, in that: `products.sum_type(dtype)`. A mixer that is always
  float32 is refused in float64 models alone. Images do not affect each other, so that XLA can
  split the batch over devices.
- It must work inside `jax.jit` and `jax.lax.scan` (see `BlockStack`): no Python branches
  on values, and attributes that are not parameters must be hashable.
- Its state is nothing but `nnx.Param`, all of that type. Weight decay applies to those called
  "kernel" or "complex_weight".
- If the shape of a parameter depends on the grid, it has a static method
  `resize_params(params, before, after)`, which `fit.py` calls to carry a model to another
  image size: from NumPy arrays by name ("layer.kernel" for a layer inside), for the grid
  `before`, to arrays by the same names for the grid `after`. A grid is (height, width) in
  tokens. If it takes `rule`, too, that is the name of a rule in `resize.RULES`. For a model with
  `dynamic_size`, it must take JAX's arrays as well. For a gain (height, width, dim), interpolated
  as the position embedding is:

    @staticmethod
    def resize_params(params, before, after, rule):
      return {"gain": resize_positions(params["gain"], after, rule)}
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gfnet_jax.models.arguments import check_dtype, check_input, check_rngs
from gfnet_jax.models.attention import SelfAttention
from gfnet_jax.models.convolution import Convolution3, Convolution5, Convolution7
from gfnet_jax.models.fourier import global_filter, spatial_kernel
from gfnet_jax.models.fourier_backends import check_backend
from gfnet_jax.models.fourier_mixing import FourierMixing
from gfnet_jax.models.global_local import GlobalLocalFilter
from gfnet_jax.models.initializers import normal_init
from gfnet_jax.models.precision import check_filter_precision
from gfnet_jax.models.products import sum_type
from gfnet_jax.models.resize import Array, Grid, resize_filter
from gfnet_jax.models.sizes import as_sizes
from gfnet_jax.models.spatial_mlp import SpatialMlp


class GlobalFilter(nnx.Module):
  """Mixes tokens by a learned filter in the frequency domain (paper, section 3.2).

  Equivalent to a depthwise circular convolution as large as the token grid.

  Args:
    dim: channels.
    height: rows of the token grid.
    width: columns of the token grid.
    backend: how to transform: "auto" or a name in `fourier_backends.BACKENDS`.
    precision: of the transforms, see `filter_precision`.
    dtype: the filter computes in float32, or float64 if it is that.
    rngs: source of the initial weights, N(0, 0.02^2) for real and imaginary parts.

  Raises:
    UserError: for an unknown backend or precision, a type that it cannot compute in, a size that
      is no positive integer, or rngs that have no parameters.
  """

  def __init__(
    self,
    dim: int,
    height: int,
    width: int,
    *,
    backend: str = "auto",
    precision: str = "high",
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    dim, height, width = as_sizes(dim=dim, height=height, width=width)
    check_rngs(rngs)
    check_dtype(dtype)
    self.dtype = total = sum_type(dtype)
    check_backend(backend, total)  # so that a mistake shows at once
    check_filter_precision(precision)
    # Pairs first: a trailing axis of 2 would be padded to 128 lanes on a TPU.
    shape = (2, height, width // 2 + 1, dim)
    self.complex_weight = nnx.Param(normal_init(rngs.params(), shape, total))
    self.grid, self.backend, self.precision = (height, width), backend, precision

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Filters (batch, height, width, dim) of any float type; returns float32 or float64.

    Raises:
      UserError: if the grid or the channels differ from the filter's, or the tokens are
        no real numbers.
    """
    expected = (*self.grid, self.complex_weight.shape[-1])
    check_input("GlobalFilter got tokens", tokens, expected)
    weight = self.complex_weight[...].astype(self.dtype)
    return global_filter(tokens, weight, self.backend, self.precision)

  def kernel(self) -> jax.Array:
    """The filter as a convolution: a call convolves tokens with it, circularly and per channel.

    Returns:
      (height, width, channels), real, of the type of the weights; [0, 0] weights the token itself,
      [y, x] the one y rows above and x columns to the left of it, modulo the grid.
    """
    return spatial_kernel(self.complex_weight[...], self.grid)

  def response(self) -> jax.Array:
    """What a call multiplies each frequency of the tokens by: the Fourier transform of `kernel`.

    In the DC and Nyquist columns that is not the weight but its Hermitian part, (K[u] + conj
    K[-u]) / 2, since real tokens come out; elsewhere it is the weight, and its mirror image.

    Returns:
      (height, width, channels), complex, frequencies in the order of `jnp.fft.fft2`: [0, 0] is
      the mean.
    """
    return jnp.fft.fft2(self.kernel(), axes=(0, 1))

  @staticmethod
  def resize_params(
    params: dict[str, Array], before: Grid, after: Grid, rule: str = "official"
  ) -> dict[str, Array]:
    """See `resize.resize_filter`."""
    return {"complex_weight": resize_filter(params["complex_weight"], before, after, rule)}


class Identity(nnx.Module):
  """Returns the tokens as they are: what a network learns without any mixing."""

  def __init__(self, dim, height, width, *, backend, dtype, rngs):
    self.dtype = sum_type(dtype)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    return tokens.astype(self.dtype)


MIXERS: dict[str, type[nnx.Module]] = {
  "global-filter": GlobalFilter,
  # Of the paper's table 6.
  "fnet": FourierMixing,
  "conv3": Convolution3,
  "conv5": Convolution5,
  "conv7": Convolution7,
  "spatial-mlp": SpatialMlp,
  "attention": SelfAttention,
  # Not in the paper.
  "global-local": GlobalLocalFilter,
  "identity": Identity,
}
