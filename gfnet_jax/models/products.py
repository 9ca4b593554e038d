"""Matrix products, and sums written as products, in forms that XLA also compiles well on CPUs."""

import jax
import jax.numpy as jnp

from gfnet_jax.models.gradients import custom_gradient


def with_fast_gradient(kernel: jax.Array) -> jax.Array:
  """Returns the kernel (rows, columns), of any float type, for the product x @ kernel.

  If the kernel has more rows than columns, a CPU then computes its gradient,
  x.T @ gradient, as the transpose of gradient.T @ x: products from the narrow side are
  faster. Differentiable in reverse and in forward mode. On several devices, call it
  under `jax.set_mesh`, or with explicit shardings: otherwise it assumes one device, and
  XLA may gather a sharded gradient.
  """
  return _identity(kernel)


def _pull_back(residuals, gradient):
  rows, columns = gradient.shape
  # On several devices, fixing the layout would gather a sharded gradient on each.
  meshes = jax.sharding.get_abstract_mesh(), jax.typeof(gradient).sharding.mesh
  one_device = all(mesh.size <= 1 for mesh in meshes)
  slow = rows > columns and one_device and jax.default_backend() == "cpu"
  return (_from_the_narrow_side(gradient) if slow else gradient,)


_identity = custom_gradient(
  lambda kernel: (kernel, ()), lambda residuals, tangents: tangents[0], _pull_back
)


@jax.jit  # run eagerly, a layout constraint would tie the array to its device
def _from_the_narrow_side(product: jax.Array) -> jax.Array:
  """Returns the given product x.T @ y, but has its transpose computed instead."""
  # Imported here, so that a change in an experimental module can only break training on a CPU.
  from jax.experimental.layout import Layout, with_layout_constraint

  turned = jax.lax.optimization_barrier(product.T)  # else XLA turns it back
  # Stored by rows, so that the optimiser need not stride through it.
  return with_layout_constraint(turned.T, Layout((0, 1)))


def sum_over_rows(x: jax.Array) -> jax.Array:
  """Sums an array (n, ...) of any float type over its first axis.

  It multiplies by ones: XLA's CPU code for a plain sum is many times slower.
  """
  return jnp.tensordot(jnp.ones(x.shape[0], x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def repeat_rows(x: jax.Array, n: int) -> jax.Array:
  """Repeats an array of any float type n times, to (n, ...); its gradient is `sum_over_rows`."""
  return jnp.tensordot(jnp.ones(n, x.dtype), x, 0, precision=jax.lax.Precision.HIGHEST)
