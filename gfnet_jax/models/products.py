"""Products, and sums as products, in the form that XLA computes fast on a CPU, too."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@jax.custom_vjp
def narrowing_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """x @ kernel for a kernel with fewer columns than rows. Differentiable in reverse mode.

  Args:
    x: (n, rows), any float type.
    kernel: (rows, columns), of the same type.

  Returns:
    (n, columns), of the same type.
  """
  return x @ kernel


def _forward(x, kernel):
  return x @ kernel, (x, kernel)


def _backward(residuals, gradient):
  x, kernel = residuals
  return gradient @ kernel.T, _wide_times_narrow(x, gradient)


narrowing_product.defvjp(_forward, _backward)


def _wide_times_narrow(wide: jax.Array, narrow: jax.Array) -> jax.Array:
  """wide.T @ narrow, which a CPU computes faster as the transpose of narrow.T @ wide."""
  one_cpu = jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
  if not one_cpu:
    return wide.T @ narrow
  turned = jax.lax.optimization_barrier(narrow.T @ wide)  # or XLA would turn it back
  # Written out, or all that reads it would read across its rows. Over several devices
  # this would gather a sharded gradient on each.
  return with_layout_constraint(turned.T, Layout((0, 1)))


def sum_over_rows(x: jax.Array) -> jax.Array:
  """Sums (n, ...) of any float type over its first axis.

  As a product with ones: XLA's CPU compiler is many times slower at the sum itself.
  """
  return jnp.tensordot(jnp.ones(len(x), x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def repeat_rows(x: jax.Array, n: int) -> jax.Array:
  """Repeats (...) of any float type to (n, ...), such that `sum_over_rows` is its gradient."""
  return jnp.tensordot(jnp.ones(n, x.dtype), x, 0, precision=jax.lax.Precision.HIGHEST)
