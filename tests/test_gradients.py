"""Gradients of our own under all of JAX's transformations, against automatic differentiation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gfnet_jax.models import fourier, products
from gfnet_jax.models.fourier import global_filter
from gfnet_jax.models.fourier_backends import STACKED
from gfnet_jax.models.gradients import custom_gradient
from gfnet_jax.models.layer_norm import EPSILON, LayerNorm
from gfnet_jax.models.products import linear


def plain_filter(tokens, weight):
  spectrum = jnp.fft.rfft2(tokens, axes=(1, 2), norm="ortho")
  spectrum *= jax.lax.complex(weight[0], weight[1])[None]
  return jnp.fft.irfft2(spectrum, s=tokens.shape[1:3], axes=(1, 2), norm="ortho")


def norm(x, scale):
  layer = LayerNorm(scale.shape[0], rngs=nnx.Rngs(0))
  layer.scale = nnx.Param(scale)
  return layer(x)


def plain_norm(x, scale):
  centred = x - x.mean(-1, keepdims=True)
  deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
  return centred / deviation * scale[None]


def product(x, kernel):
  return linear(x, kernel, kernel[0], jnp.float32)


def plain_product(x, kernel):
  return x @ kernel + kernel[:1]


def filtered_by(backend: str) -> Callable:
  return lambda tokens, weight: global_filter(tokens, weight, backend)


def random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


TOKENS, WEIGHT = (8, 2, 3, 2), (2, 2, 2, 2)
CASES = {
  **{backend: (filtered_by(backend), plain_filter, TOKENS, WEIGHT) for backend in STACKED},
  "norm": (norm, plain_norm, (8, 5), (5,)),
  "product": (product, plain_product, (8, 5), (5, 2)),
}


def curved(function):
  """A number with derivatives of every order in both arguments."""
  return lambda x, weight: jnp.sin(function(x, weight)).sum()


def assert_alike(found, expected, atol):
  scale = max(np.abs(array).max() for array in jax.tree.leaves(expected))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=atol * scale)


@pytest.mark.parametrize("case", CASES)
def test_tangents_and_gradients_are_the_automatic_ones(case):
  """Of both arguments and of one, of single images, and of what is computed again."""
  function, plain, *shapes = CASES[case]

  def derivatives(f, x, weight):
    linear = jax.linearize(f, x, weight)[1]
    return [
      jax.jvp(f, (x, weight), (jnp.cos(x), jnp.sin(weight))),
      jax.jvp(lambda weight: f(x, weight), (weight,), (jnp.sin(weight),)),
      linear(jnp.sin(x), weight),
      jax.vmap(lambda x: jax.grad(curved(f), (0, 1))(x[None], weight))(x),
      jax.grad(jax.checkpoint(curved(f)), (0, 1))(x, weight),
    ]

  arrays = random(*shapes[0]), random(*shapes[1], seed=1)
  found, expected = (jax.jit(derivatives, static_argnums=0)(f, *arrays) for f in (function, plain))
  assert_alike(found, expected, 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
  ("outer", "inner"),
  [
    (jax.jacfwd, jax.jacrev),
    (jax.jacrev, jax.jacrev),
    (jax.jacfwd, jax.jacfwd),
    (jax.jacrev, jax.jacfwd),
  ],
)
def test_second_derivatives_are_the_automatic_ones(case, outer, inner):
  function, plain, *shapes = CASES[case]
  arrays = random(*shapes[0]), random(*shapes[1], seed=1)
  found = jax.jit(outer(inner(curved(function), (0, 1)), (0, 1)))(*arrays)
  assert_alike(found, jax.jit(jax.hessian(curved(plain), (0, 1)))(*arrays), 3e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_hessian_of_a_filter_is_the_automatic_one(platform, monkeypatch):
  for module in (fourier, products):
    monkeypatch.setattr(module, "platform_of", lambda _: platform)
  tokens, weight = random(1, 2, 2, 1), random(2, 2, 2, 1, seed=1)
  found, expected = (
    jax.jit(jax.hessian(curved(f), (0, 1)))(tokens, weight)
    for f in (filtered_by("separable"), plain_filter)
  )
  assert_alike(found, expected, 3e-6)


@pytest.mark.parametrize("backend", STACKED)
def test_forward_mode_agrees_with_finite_differences(backend):
  arrays = random(2, 3, 4, 2), random(2, 3, 3, 2, seed=1)
  check_grads(jax.jit(filtered_by(backend)), arrays, 1, ["fwd"], rtol=1e-2, eps=0.1)


@pytest.mark.parametrize("axes", [(None, 0), (4, None), (1, 2)])
def test_weights_and_tokens_are_mapped_over_any_axis(axes):
  """Their gradients and tangents are those one by one."""
  arrays = [random(*TOKENS), random(*WEIGHT, seed=1)]
  arrays = [
    a if axis is None else np.stack([a, 2 * a, -a], axis)
    for a, axis in zip(arrays, axes, strict=True)
  ]

  @jax.jit
  def derivatives(x, weight):
    gradients = jax.grad(curved(filtered_by("fft")), (0, 1))(x, weight)
    return gradients, jax.jvp(filtered_by("fft"), (x, weight), gradients)

  found = jax.jit(jax.vmap(derivatives, axes))(*arrays)
  for i in range(3):
    one = [a if axis is None else a.take(i, axis) for a, axis in zip(arrays, axes, strict=True)]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(derivatives(*one)), strict=True):
      np.testing.assert_allclose(a[i], b, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
  ("case", "check"),
  [
    ("fft", True),
    ("norm", True),
    ("product", True),
    *[
      pytest.param(case, check, marks=pytest.mark.slow)
      for case, check in [("separable", True), ("dense", True), *[(case, False) for case in CASES]]
    ],
  ],
)
def test_gradients_inside_shard_map_are_summed(case, kind, check):
  """Of replicated weights, over the axes over which the images are split, and no others."""
  function, plain, *shapes = CASES[case]
  x, weight = random(*shapes[0]), random(*shapes[1], seed=1)
  expected = jax.jit(jax.grad(curved(plain), (0, 1)))(x, weight)
  mesh = jax.make_mesh((4, 2), ("images", "other"), axis_types=(kind,) * 2)
  split, whole = PartitionSpec("images"), PartitionSpec()

  def gradients(x, weight):
    x_gradient, gradient = jax.grad(curved(function), (0, 1))(x, weight)
    return x_gradient, gradient if check else jax.lax.psum(gradient, "images")

  sharded = jax.shard_map(
    gradients, mesh=mesh, in_specs=(split, whole), out_specs=(split, whole), check_vma=check
  )
  x = jax.device_put(x, NamedSharding(mesh, split))
  for a, b in zip(jax.jit(sharded)(x, weight), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("backend", STACKED)
def test_the_backward_pass_keeps_the_spectrum_and_the_weight(backend):
  tokens, weight = random(2, 4, 6, 3), random(2, 4, 4, 3)
  _, pull_back = jax.vjp(filtered_by(backend), tokens, weight)
  assert sorted(x.size for x in jax.tree.leaves(pull_back)) == [weight.size, 2 * weight.size]


def test_each_mode_calls_its_own_rule():
  """And nothing of the other's is even traced."""
  calls = []

  def noted(name, function):
    return lambda *arguments: (calls.append(name), function(*arguments))[1]

  double = custom_gradient(
    noted("forward", lambda x: (2 * x, ())),
    noted("push", lambda residuals, tangents: 2 * tangents[0]),
    noted("pull", lambda residuals, gradient: (2 * gradient,)),
  )
  assert double(3.0) == 6
  assert jax.grad(double)(3.0) == 2
  assert calls == ["forward", "forward", "pull"]
  assert jax.jvp(double, (3.0,), (5.0,)) == (6, 10)
  assert calls == ["forward", "forward", "pull", "forward", "push"]
