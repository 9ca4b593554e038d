"""The product of every dense layer, and sums as products, in the form that suits the platform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.platform import multiplies, platform_of


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: DTypeLike) -> jax.Array:
  """Multiplies rows by a kernel and adds a bias.

  The factors of the product and of those in its gradient are rounded to `dtype`; sums are of
  float32 or, if `dtype` is wider, of that. The gradient of x is of x's type, those of kernel and
  bias are of the sums'. Differentiable in reverse and in forward mode. On several devices,
  call it under `jax.set_mesh`, or with explicit shardings: otherwise it assumes one device,
  and XLA may gather a sharded gradient.

  Args:
    x: (n, rows), any float type.
    kernel: (rows, columns), any float type.
    bias: (columns,), any float type.
    dtype: of the factors.

  Returns:
    (n, columns), float32 or, if `dtype` is wider, that.
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
  plain = (((1,), (0,)), ((), ()))  # ((axes of a, of b to sum over), batches)

  def emulated(x):
    return dtype != total and not multiplies(dtype, platform_of(x))

  def rounded(x):
    if emulated(x):  # what follows would undo a mere cast
      x = jax.lax.reduce_precision(x.astype(total), jnp.finfo(dtype).nexp, jnp.finfo(dtype).nmant)
    return x.astype(dtype)

  def multiply(a, b, axes, out_sharding=None):
    if emulated(a):  # the same products, as fast as any of float32
      a, b = a.astype(total), b.astype(total)
    return jax.lax.dot_general(a, b, axes, preferred_element_type=total, out_sharding=out_sharding)

  def forward(x, kernel, bias):
    x, kernel = rounded(x), rounded(kernel)
    return multiply(x, kernel, plain) + bias[None], (x, kernel)

  def push_forward(residuals, tangents):
    x, kernel = residuals
    x_tangent, kernel_tangent, bias_tangent = tangents
    of_x = multiply(rounded(x_tangent), kernel, plain)
    return of_x + multiply(x, rounded(kernel_tangent), plain) + bias_tangent[None]

  def pull_back(residuals, gradient):
    x, kernel = residuals
    factor = rounded(gradient)
    of_x = multiply(factor, kernel, (((1,), (1,)), ((), ())), out_sharding=_explicit(x))
    over_rows = (((0,), (0,)), ((), ()))
    if _from_the_narrow_side(kernel):
      of_kernel = _turned(multiply(factor, x, over_rows))
    else:
      of_kernel = multiply(x, factor, over_rows, out_sharding=_explicit(kernel))
    return of_x.astype(x_type), of_kernel, sum_over_rows(gradient)

  return custom_gradient(forward, push_forward, pull_back)


def _explicit(x: jax.Array) -> jax.sharding.NamedSharding | None:
  """The sharding of an array if it is explicit."""
  sharding = jax.typeof(x).sharding
  return sharding if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types else None


def _from_the_narrow_side(kernel: jax.Array) -> bool:
  """Whether the gradient of a kernel is to be computed as its transpose.

  A CPU multiplies faster so if the kernel has more rows than columns. On several devices,
  fixing the layout would gather a sharded gradient on each.
  """
  meshes = jax.sharding.get_abstract_mesh(), jax.typeof(kernel).sharding.mesh
  one_device = all(mesh.size <= 1 for mesh in meshes)
  rows, columns = kernel.shape
  return rows > columns and one_device and platform_of(kernel) == "cpu"


@jax.jit  # run eagerly, a layout constraint would tie the array to its device
def _turned(product: jax.Array) -> jax.Array:
  """Returns the transpose, but has the product itself computed."""
  # Imported here, so that a change in an experimental module can only break training on a CPU.
  from jax.experimental.layout import Layout, with_layout_constraint

  product = jax.lax.optimization_barrier(product)  # else XLA computes the transpose
  # Stored by rows, so that the optimiser need not stride through it.
  return with_layout_constraint(product.T, Layout((0, 1)))


def sum_over_rows(x: jax.Array) -> jax.Array:
  """Sums an array (n, ...) of any float type over its first axis.

  On a CPU it multiplies by ones: XLA's code for a plain sum is many times slower there.
  """
  if platform_of(x) != "cpu":
    return x.sum(0)
  return jnp.tensordot(jnp.ones(x.shape[0], x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def sum_over_columns(x: jax.Array, weights: jax.Array) -> jax.Array:
  """Sums (n, columns) over the columns, times weights (columns,) of the same float type: (n, 1).

  On a CPU it is a product, for the same reason.
  """
  if platform_of(x) != "cpu":
    return (x * weights[None]).sum(-1, keepdims=True)
  return jnp.matmul(x, weights[:, None], precision=jax.lax.Precision.HIGHEST)


def repeat_rows(x: jax.Array, n: int) -> jax.Array:
  """Repeats an array of any float type n times, to (n, ...); its gradient is `sum_over_rows`."""
  if platform_of(x) != "cpu":
    return jnp.broadcast_to(x, (n, *x.shape))
  return jnp.tensordot(jnp.ones(n, x.dtype), x, 0, precision=jax.lax.Precision.HIGHEST)
