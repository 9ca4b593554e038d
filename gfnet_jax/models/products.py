"""Products, and sums as products, in the form that XLA computes fast on a CPU, too."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def with_fast_gradient(kernel: jax.Array) -> jax.Array:
  """The kernel (rows, columns) itself, of any float type, for the product x @ kernel.

  The gradient of a kernel with more rows than columns, x.T @ gradient, is then computed
  as the transpose of gradient.T @ x on a CPU: products from the narrow side are faster.
  Differentiable in reverse mode. On several devices call it under `jax.set_mesh`: it
  takes arrays without a mesh for those of one, and XLA may gather a sharded gradient.
  """
  return kernel


def _forward(kernel):
  return kernel, None


def _backward(_, gradient):
  rows, columns = gradient.shape
  # Over several devices the layout would have a sharded gradient gathered on each.
  one_device = jax.sharding.get_abstract_mesh().size <= 1
  slow = rows > columns and one_device and jax.default_backend() == "cpu"
  return (_from_the_narrow_side(gradient) if slow else gradient,)


with_fast_gradient.defvjp(_forward, _backward)


@jax.jit  # outside of a compiled function, a layout alone would bind the array to its device
def _from_the_narrow_side(product: jax.Array) -> jax.Array:
  """The product x.T @ y, whose transpose is to be computed in its place."""
  # Here, so that a change of an experimental module can only concern training on a CPU.
  from jax.experimental.layout import Layout, with_layout_constraint

  turned = jax.lax.optimization_barrier(product.T)  # or XLA would turn it back
  # Stored by rows, or the optimiser would stride through it.
  return with_layout_constraint(turned.T, Layout((0, 1)))


def sum_over_rows(x: jax.Array) -> jax.Array:
  """Sums (n, ...) of any float type over its first axis.

  As a product with ones: XLA's CPU compiler is many times slower at the sum itself.
  """
  return jnp.tensordot(jnp.ones(len(x), x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def repeat_rows(x: jax.Array, n: int) -> jax.Array:
  """Repeats (...) of any float type to (n, ...), such that `sum_over_rows` is its gradient."""
  return jnp.tensordot(jnp.ones(n, x.dtype), x, 0, precision=jax.lax.Precision.HIGHEST)
