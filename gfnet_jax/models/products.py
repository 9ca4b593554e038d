"""The product of every dense layer, and sums as products, in the form that suits the platform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.platform import multiplies, platform_of


def as_rows(x: jax.Array) -> jax.Array:
  """Tokens (..., channels), any type, as they are multiplied, summed and normalised fastest.

  On a CPU or GPU that is as rows (n, channels): there XLA is slow to contract several axes in a
  kernel's gradient. On a TPU it isn't, and chooses one layout for norm, filter and product, which
  it can do only while the tokens are not flattened: 14 x 14 tokens leave tiles of eight rows partly
  empty, so that rows of all images would be copied from one layout to another.
  """
  return x if platform_of(x) == "tpu" else x.reshape(-1, x.shape[-1])


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: DTypeLike) -> jax.Array:
  """Multiplies rows by a kernel and adds a bias.

  The factors of the product and of those in its gradient are rounded to `dtype`; sums are of
  float32 or, if `dtype` is wider, of that. The gradient of x is of x's type, those of kernel and
  bias are of the sums'. Differentiable in reverse and in forward mode. On several devices,
  call it under `jax.set_mesh`, or with explicit shardings: otherwise it assumes one device,
  and XLA may gather a sharded gradient.

  Args:
    x: (..., rows), any float type; see `as_rows`.
    kernel: (rows, columns), any float type.
    bias: (columns,), any float type.
    dtype: of the factors.

  Returns:
    (..., columns), float32 or, if `dtype` is wider, that.
  """
  dtype = jnp.dtype(dtype)
  kernel, bias = (array.astype(sum_type(dtype)) for array in (kernel, bias))
  return _linear(dtype, x.dtype)(x, kernel, bias)


def sum_type(dtype: DTypeLike) -> jnp.dtype:
  """The type in which numbers of a float type are summed: float32, or float64 for float64."""
  return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


@functools.cache
def _linear(dtype: jnp.dtype, x_type: jnp.dtype) -> Callable[..., jax.Array]:
  total = sum_type(dtype)

  def emulated(x):
    return dtype != total and not multiplies(dtype, platform_of(x))

  def rounded(x):
    if emulated(x):  # what follows would undo a mere cast
      x = jax.lax.reduce_precision(x.astype(total), jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    return x.astype(dtype)

  def multiply(a, b, a_axes, b_axes, out_sharding=None):
    """Sums over these axes of a and of b."""
    if emulated(a):  # the same products, as fast as any of float32
      a, b = a.astype(total), b.astype(total)
    axes = ((tuple(a_axes), tuple(b_axes)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=total, out_sharding=out_sharding)

  def forward(x, kernel, bias):
    x, kernel = rounded(x), rounded(kernel)
    product = multiply(x, kernel, [x.ndim - 1], [0])
    return product + per_channel(bias, product), (x, kernel)

  def push_forward(residuals, tangents):
    x, kernel = residuals
    x_tangent, kernel_tangent, bias_tangent = tangents
    of_x = multiply(rounded(x_tangent), kernel, [x.ndim - 1], [0])
    of_kernel = multiply(x, rounded(kernel_tangent), [x.ndim - 1], [0])
    return of_x + of_kernel + per_channel(bias_tangent, of_x)

  def pull_back(residuals, gradient):
    x, kernel = residuals
    factor = rounded(gradient)
    of_x = multiply(factor, kernel, [x.ndim - 1], [1], out_sharding=_explicit(x))
    rows = _rows(x)
    if _on_one_cpu(kernel):
      of_kernel = _from_the_narrow_side(x, factor, multiply)
    else:
      of_kernel = multiply(x, factor, rows, rows, out_sharding=_explicit(kernel))
    (of_bias,) = sum_per_channel(gradient)
    return of_x.astype(x_type), of_kernel, of_bias

  return custom_gradient(forward, push_forward, pull_back)


def _explicit(x: jax.Array) -> jax.sharding.NamedSharding | None:
  """The sharding of an array if it is explicit."""
  sharding = jax.typeof(x).sharding
  return sharding if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types else None


def _on_one_cpu(x: jax.Array) -> bool:
  """Whether XLA may be told a layout: on several devices it would gather what is sharded."""
  meshes = jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh
  alone = all(mesh.size <= 1 for mesh in meshes) and not _explicit(x)
  return alone and platform_of(x) == "cpu"


def _from_the_narrow_side(
  x: jax.Array, gradient: jax.Array, multiply: Callable[..., jax.Array]
) -> jax.Array:
  """The gradient of a kernel, from the factors of its product, as a CPU computes it fastest.

  XLA for CPUs has fast kernels for a product that sums over the last axis of its left factor;
  others are slower, and those of bfloat16 are computed in float32. So the narrower factor is
  transposed first.
  """
  x, gradient = (tokens.reshape(-1, tokens.shape[-1]) for tokens in (x, gradient))
  if x.shape[1] <= gradient.shape[1]:
    return multiply(_transposed(x), gradient, [1], [0])
  product = multiply(_transposed(gradient), x, [1], [0])
  return _transposed(jax.lax.optimization_barrier(product))  # else XLA computes the transpose


@jax.jit  # run eagerly, a layout constraint would tie the array to its device
def _transposed(matrix: jax.Array) -> jax.Array:
  """The transpose, stored by rows."""
  # Imported here, so that a change in an experimental module can only break training on a CPU.
  from jax.experimental.layout import Layout, with_layout_constraint

  return with_layout_constraint(matrix.T, Layout((0, 1)))


def sum_over_rows(x: jax.Array) -> jax.Array:
  """Sums an array (n, ...) of any float type over its first axis.

  On a CPU it multiplies by ones: XLA's code for a plain sum is many times slower there.
  """
  if platform_of(x) != "cpu":
    return x.sum(0)
  return jnp.tensordot(jnp.ones(x.shape[0], x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def sum_per_channel(*tokens: jax.Array) -> tuple[jax.Array, ...]:
  """Sums arrays of tokens (..., channels), of one shape and float type, to (channels,) each."""
  if platform_of(tokens[0]) == "cpu" and tokens[0].ndim == 2:
    return tuple(map(sum_over_rows, tokens))
  return sum_together(_rows(tokens[0]), *tokens)


def sum_together(axes: tuple[int, ...], *arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Sums arrays of one shape and float type over some axes.

  On a GPU, in one pass: XLA would otherwise read what they are computed from for each sum. Not
  where it may split them over devices: it would gather such sums instead of reducing them.
  """
  if platform_of(arrays[0]) == "gpu" and not _may_be_split(arrays[0]):
    return _sum_in_one_pass(axes, *arrays)
  return tuple(x.sum(axes) for x in arrays)


def _may_be_split(x: jax.Array) -> bool:
  """Whether a mesh has an axis over which XLA may split an array: none of `jax.shard_map`'s."""
  meshes = jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh
  return any(
    size > 1 and kind != jax.sharding.AxisType.Manual
    for mesh in meshes
    for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_in_one_pass(axes, *arrays):
  def add(sums, terms):
    return tuple(map(jax.lax.add, sums, terms))

  return tuple(jax.lax.reduce(arrays, tuple(x.dtype.type(0) for x in arrays), add, axes))


@_sum_in_one_pass.defjvp
def _(axes, arrays, tangents):
  return _sum_in_one_pass(axes, *arrays), tuple(x.sum(axes) for x in tangents)


def _rows(x: jax.Array) -> tuple[int, ...]:
  """All axes but the last."""
  return tuple(range(x.ndim - 1))


def per_channel(values: jax.Array, tokens: jax.Array) -> jax.Array:
  """Values (channels,) with as many axes as tokens (..., channels)."""
  return jnp.expand_dims(values, _rows(tokens))


def sum_over_channels(x: jax.Array, weights: jax.Array) -> jax.Array:
  """Sums tokens (..., channels) times weights (channels,) of the same float type: (..., 1).

  On a CPU it is a product, for the same reason.
  """
  if platform_of(x) != "cpu":
    return (x * per_channel(weights, x)).sum(-1, keepdims=True)
  return jnp.matmul(x, weights[:, None], precision=jax.lax.Precision.HIGHEST)


def repeat_rows(x: jax.Array, n: int) -> jax.Array:
  """Repeats an array of any float type n times, to (n, ...); its gradient is `sum_over_rows`."""
  if platform_of(x) != "cpu":
    return jnp.broadcast_to(x, (n, *x.shape))
  return jnp.tensordot(jnp.ones(n, x.dtype), x, 0, precision=jax.lax.Precision.HIGHEST)
