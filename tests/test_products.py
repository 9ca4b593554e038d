"""Products with a gradient of their own, and sums as products."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import collectives
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.layers import Mlp
from gfnet_jax.models.products import linear, repeat_rows, sum_over_rows

pytestmark = pytest.mark.usefixtures("compiled_as_for_users")


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return linear(x, kernel, jnp.zeros(kernel.shape[1], kernel.dtype), kernel.dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (5, 3, 7), (4, 6, 6)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_gradients(shape, dtype, compiled):
  """Against float64 NumPy with the factors, and nothing else, rounded; (n, rows, columns)."""
  n, rows, columns = shape
  rng = np.random.default_rng(0)
  sizes = (n, rows), (rows, columns), (columns,), (n, columns)
  arrays = [rng.normal(size=size).astype(np.float32) for size in sizes]

  def value_and_gradients(x, kernel, bias, gradient):
    value, pull_back = jax.vjp(lambda *factors: linear(*factors, dtype), x, kernel, bias)
    return value, *pull_back(gradient)

  function = jax.jit(value_and_gradients) if compiled else value_and_gradients
  found = function(*map(jnp.asarray, arrays))
  x, kernel, gradient = (np.asarray(jnp.asarray(arrays[i], dtype), np.float64) for i in (0, 1, 3))
  bias, whole_gradient = (np.float64(arrays[i]) for i in (2, 3))
  expected = x @ kernel + bias, gradient @ kernel.T, x.T @ gradient, whole_gradient.sum(0)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == jnp.float32 and not a.committed
    np.testing.assert_allclose(np.float64(a), b, atol=1e-6 * max(1, np.abs(b).max()))


def test_tangents_in_bfloat16():
  """Forward mode rounds the factors and sums in float32, too."""
  rng = np.random.default_rng(0)
  primals, tangents = (
    tuple(rng.normal(size=size).astype(np.float32) for size in ((4, 5), (5, 3), (3,)))
    for _ in range(2)
  )
  _, found = jax.jvp(lambda *factors: linear(*factors, jnp.bfloat16), primals, tangents)
  x, kernel, dx, dkernel = (
    np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (*primals[:2], *tangents[:2])
  )
  np.testing.assert_allclose(found, dx @ kernel + x @ dkernel + tangents[2], atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_single_samples(compiled):
  """Through `jax.vmap` over the samples, in any axis, and over the kernel, too."""
  x, kernels = jax.random.normal(jax.random.key(0), (5, 3, 4)), jnp.ones((5, 4, 2))
  kernels *= jnp.arange(8.0).reshape(1, 4, 2)

  def loss(kernel, x):
    return jnp.square(product(x, kernel)).sum()

  expected = jnp.stack([2 * rows.T @ (rows @ kernels[0]) for rows in x])
  for axes, arguments in {
    (None, 0): (kernels[0], x),
    (None, 2): (kernels[0], jnp.moveaxis(x, 0, 2)),
    (0, 0): (kernels, x),
    (2, 0): (jnp.moveaxis(kernels, 0, 2), x),
  }.items():
    gradients = jax.vmap(jax.grad(loss), axes)
    gradients = jax.jit(gradients) if compiled else gradients
    np.testing.assert_allclose(gradients(*arguments), expected, rtol=1e-4, atol=1e-4)


def test_a_cpu_multiplies_from_the_narrow_side():
  """And an optimiser reads the gradient as its other arrays, not across the rows."""

  def step(kernel, moment, x):
    gradient = jax.grad(lambda kernel: jnp.square(product(x, kernel)).sum())(kernel)
    moment = 0.9 * moment + 0.1 * gradient
    return kernel - 0.1 * moment / (1 + jnp.abs(gradient)), moment

  x, kernel = jnp.ones((64, 32)), jnp.ones((32, 8))
  hlo = jax.jit(step).lower(kernel, kernel, x).compile().as_text()
  entry = hlo[hlo.index("ENTRY") :]
  turned = re.findall(r"%(\S+) = f32\[8,32\]\{1,0\}", entry)
  assert len(turned) == 1, "the product"
  assert len(re.findall(rf"%{re.escape(turned[0])}[,)]", entry)) == 1, "what turns it back"
  assert not re.search(r"f32\[32,8\]\{0,1\}", entry)


def test_the_mlp_multiplies_from_the_narrow_side():
  structure, params = split(Mlp(8, 32, dtype=jnp.float32, rngs=nnx.Rngs(0)))

  def loss(params):
    return jnp.square(merge(structure, params)(jnp.ones((4, 8)))).sum()

  assert str(jax.make_jaxpr(jax.grad(loss))(params)).count("layout_constraint") == 1


@pytest.mark.parametrize("spec", [(), ("data",), (None, "data")])
def test_a_sharded_gradient_needs_no_other_collectives(spec):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("data")))
  kernel = jax.device_put(jnp.ones((32, 8)), NamedSharding(mesh, PartitionSpec(*spec)))

  def found(product) -> dict[str, int]:
    def gradient(x, kernel):
      return jax.grad(lambda kernel: jnp.square(product(x, kernel)).sum())(kernel)

    with jax.set_mesh(mesh):
      compiled = jax.jit(gradient, out_shardings=kernel.sharding).lower(x, kernel).compile()
    return {kind: len(shapes) for kind, shapes in collectives(compiled.as_text()).items()}

  expected = found(jnp.matmul)
  assert expected
  assert found(product) == expected


def test_sums_and_repetitions_are_each_others_gradients():
  x = jax.random.normal(jax.random.key(0), (5, 2, 3))
  np.testing.assert_allclose(sum_over_rows(x), x.sum(0), atol=1e-6)
  np.testing.assert_array_equal(repeat_rows(x, 4), jnp.stack([x] * 4))
  _, pull_back = jax.vjp(lambda row: repeat_rows(row, 5), x[0])
  np.testing.assert_allclose(pull_back(x)[0], x.sum(0), atol=1e-6)
