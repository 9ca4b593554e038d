"""The hand-written gradient against float64 NumPy and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from gfnet_jax.models import layer_norm, products
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.layer_norm import EPSILON, LayerNorm


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def _every_platform(request, monkeypatch):
  """Norms in the form of every platform, on this machine."""
  for module in (layer_norm, products):
    monkeypatch.setattr(module, "platform_of", lambda _: request.param)


def make_norm(dim: int, rng: np.random.Generator) -> LayerNorm:
  norm = LayerNorm(dim, rngs=nnx.Rngs(0))
  norm.scale[...], norm.bias[...] = rng.normal(1, 0.5, (2, dim)).astype(np.float32)
  return norm


def expected(norm: LayerNorm, x: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, ...]:
  """The result and the gradients of x, scale and bias in float64, by their definitions."""
  scale, bias = np.float64(norm.scale[...]), np.float64(norm.bias[...])
  dim = x.shape[-1]
  x, gradient = (np.float64(array).reshape(-1, dim) for array in (x, gradient))
  deviation = np.sqrt(x.var(-1, keepdims=True) + EPSILON)
  normalised = (x - x.mean(-1, keepdims=True)) / deviation
  # The Jacobian of every row, (row, result, x).
  jacobian = np.eye(dim) - 1 / dim - normalised[:, :, None] * normalised[:, None] / dim
  x_gradient = np.einsum("rij,ri->rj", jacobian / deviation[:, None], gradient * scale)
  return (
    normalised * scale + bias,
    x_gradient,
    (gradient * normalised).sum(0),
    gradient.sum(0),
  )


@pytest.mark.usefixtures("_every_platform")
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (4, 8), (3, 1, 16)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients(shape, dtype):
  rng = np.random.default_rng(0)
  norm = make_norm(shape[-1], rng)
  x = jnp.asarray(rng.normal(3, 2, shape), dtype)
  gradient = jnp.asarray(rng.normal(size=shape), jnp.float32)

  structure, params = split(norm)

  def apply(x, scale, bias):
    return merge(structure, {"scale": scale, "bias": bias})(x)

  weights = (params["scale"], params["bias"])
  wanted = expected(norm, np.asarray(x, np.float32), np.asarray(gradient))
  result, pull_back = jax.vjp(apply, x, *weights)
  assert result.dtype == jnp.float32
  found = (result, *pull_back(gradient))
  assert found[1].dtype == dtype
  for name, a, b in zip(("value", "x", "scale", "bias"), found, wanted, strict=True):
    limit = 1e-2 if name == "x" and dtype == jnp.bfloat16 else 2e-6  # rounded to bfloat16
    np.testing.assert_allclose(
      np.float64(a).reshape(b.shape), b, atol=limit * np.abs(b).max(), err_msg=name
    )


@pytest.mark.usefixtures("_every_platform")
@pytest.mark.parametrize("mean", [0.0, 1e3, -1e4])
def test_rows_far_from_zero(mean):
  """As accurate as the tokens are, which sums of squares would not be."""
  rows = np.random.default_rng(0).normal(mean, 1, (16, 96)).astype(np.float32)
  found = LayerNorm(96, rngs=nnx.Rngs(0))(jnp.asarray(rows))
  rows = np.float64(rows)
  deviation = np.sqrt(rows.var(-1, keepdims=True) + EPSILON)
  wanted = (rows - rows.mean(-1, keepdims=True)) / deviation
  rounding = 2e-6 + 8 * np.spacing(np.float32(abs(mean)))  # that of the sum behind the mean
  np.testing.assert_allclose(found, wanted, atol=rounding)


@pytest.mark.usefixtures("_every_platform")
def test_second_derivatives():
  """Against central differences of the gradient in float64."""
  norm = make_norm(6, np.random.default_rng(1))
  row, weights = np.random.default_rng(2).normal(size=(2, 6))

  def gradient(row):
    return expected(norm, row[None], weights[None])[1][0]

  steps = 1e-5 * np.eye(6)
  wanted = [(gradient(row + step) - gradient(row - step)) / 2e-5 for step in steps]
  weights = jnp.asarray(weights, jnp.float32)
  hessian = jax.jit(jax.hessian(lambda row: norm(row[None])[0] @ weights))
  hessian = hessian(jnp.asarray(row, jnp.float32))
  np.testing.assert_allclose(hessian, np.array(wanted).T, atol=1e-4)


@pytest.mark.usefixtures("_every_platform")
def test_rows_without_variance_are_the_bias():
  norm = make_norm(8, np.random.default_rng(0))
  for value in (0.0, 1e4):
    rows, gradient = jnp.full((3, 8), value), jnp.ones((3, 8))
    result, pull_back = jax.vjp(norm, rows)
    np.testing.assert_allclose(result, jnp.broadcast_to(norm.bias[...], (3, 8)), atol=1e-6)
    assert jnp.isfinite(pull_back(gradient)[0]).all()


@pytest.mark.usefixtures("_every_platform")
def test_gradients_are_those_of_finite_differences():
  norm = make_norm(6, np.random.default_rng(1))
  x = jax.random.normal(jax.random.key(0), (4, 6))
  check_grads(jax.jit(norm), (x,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("compiled_as_for_users")
def test_gradients_compute_again_instead_of_keeping():
  """XLA keeps two arrays for every norm if it may merge both passes: 9 in all, not 3."""
  norms = [LayerNorm(8, rngs=nnx.Rngs(0)) for _ in range(4)]
  x = jnp.ones((8192, 8))

  def loss(x):
    for norm in norms:
      x = norm(x)
    return jnp.square(x).sum()

  memory = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 6 * x.nbytes
