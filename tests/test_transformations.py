"""The models in other people's programs: meshes, export, float64, copies, NNX's transforms."""

import contextlib
import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import compiled, random_model
from jax.sharding import NamedSharding, PartitionSpec

import gfnet_jax
from gfnet_jax.models.fourier_backends import STACKED
from gfnet_jax.models.functional import merge, split


def make_filter(backend: str = "auto") -> gfnet_jax.GlobalFilter:
  return gfnet_jax.GlobalFilter(4, 4, 6, backend=backend, rngs=nnx.Rngs(0))


def make_model(**options) -> gfnet_jax.GFNet:
  sizes = dict(image_size=(32, 16), embed_dim=8, depth=2, num_classes=3)
  return random_model(lambda: gfnet_jax.create_model("gfnet-ti", **sizes, **options), 0.1)


def random(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
  ("backend", "enter"),  # whether the mesh is set, or only in the types of the arrays
  [
    ("fft", True),
    *[pytest.param(backend, False, marks=pytest.mark.slow) for backend in STACKED],
    *[pytest.param(b, True, marks=pytest.mark.slow) for b in STACKED if b != "fft"],
  ],
)
@pytest.mark.parametrize(
  ("axes", "spec"),
  [
    (dict(x=1), ("x",)),
    (dict(data=8), ("data",)),
    (dict(a=4, b=2), (("a", "b"),)),
    (dict(a=4, b=2), ("a", None, None, "b")),
    (dict(a=4, b=2), (None, "a", "b")),
  ],
)
def test_the_filter_on_the_default_mesh(backend, enter, axes, spec):
  """Of explicit axes; its result is split as the tokens were, but for rows and columns."""
  layer, tokens = make_filter(backend), random(8, 4, 6, 4)

  @jax.jit
  def compute(weight, tokens):
    filtered, pull_back = jax.vjp(lambda *arrays: filter_by(layer, *arrays), weight, tokens)
    return filtered, *pull_back(2 * filtered)

  weight = np.asarray(layer.complex_weight[...])
  expected = compute(weight, tokens)
  mesh = jax.make_mesh(tuple(axes.values()), tuple(axes))
  split_tokens = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(*spec)))
  weight = jax.device_put(weight, NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh) if enter else contextlib.nullcontext():
    found = compute(weight, split_tokens)
  kept = [axis if i in (0, 3) else None for i, axis in enumerate((*spec, None, None, None)[:4])]
  assert jax.typeof(found[0]).sharding.spec == PartitionSpec(*kept)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def filter_by(layer, weight, tokens):
  structure, _ = split(layer)
  return merge(structure, {"complex_weight": weight})(tokens)


@functools.cache
def training_without_a_mesh():
  """A training step, its arguments, and what it makes of them."""
  model, images = make_model(drop_path_rate=0.5), random(8, 32, 16, 3)
  structure, params = split(model)

  @jax.jit
  def train(params, images):
    def loss(params):
      logits = merge(structure, params)(images, key=jax.random.key(0))
      return jnp.square(logits).mean(), logits

    return jax.value_and_grad(loss, has_aux=True)(params)

  return train, params, images, train(params, images)


@pytest.mark.parametrize("spec", [(("a", "b"),), ("b", "a")])
def test_a_model_on_the_default_mesh(spec):
  train, params, images, expected = training_without_a_mesh()
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  with jax.set_mesh(mesh):
    found = train(
      jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
      jax.device_put(images, NamedSharding(mesh, PartitionSpec(*spec))),
    )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("make", [make_filter, lambda: make_model(scan=True)])
def test_export_for_any_batch_and_platform(make):
  model = make()
  shape = "b, 4, 6, 4" if isinstance(model, gfnet_jax.GlobalFilter) else "b, 32, 16, 3"
  images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
  call = jax.jit(lambda x: model(x))
  exported = jax.export.export(call, platforms=("cpu", "cuda", "tpu"))(images)
  for batch in (1, 5):
    x = random(batch, *images.shape[1:])
    np.testing.assert_allclose(exported.call(x), call(x), atol=1e-5)
  x = random(2, *images.shape[1:])
  exported = jax.export.export(call)(images)
  (gradient,) = exported.vjp().call(x, exported.call(x))
  y, pull_back = jax.vjp(call, x)
  (expected,) = pull_back(y)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


@functools.cache
def gradients_in_a_float64_project():
  """A function of parameters and images, its arguments, and what it makes of them."""
  model, images = make_model(), random(2, 32, 16, 3)
  structure, params = split(model)

  def loss(params, images):
    logits = merge(structure, params)(images, key=jax.random.key(0))
    assert logits.dtype == jnp.float32
    return jnp.square(logits).sum()

  gradients = jax.jit(jax.grad(loss))
  return gradients, params, images, gradients(params, images)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_a_float64_project_and_models_cast_to_other_types(dtype):
  """Filters, norms and results stay float32; gradients have the type of the parameters."""
  with jax.enable_x64(True):
    gradients, params, images, expected = gradients_in_a_float64_project()
    cast = {name: value.astype(dtype) for name, value in params.items()}
    found = gradients(cast, images.astype(dtype))
    limit = 1e-5 if dtype == np.float64 else 0.1
    for name, gradient in found.items():
      assert gradient.dtype == dtype
      difference = np.abs(np.float64(gradient) - np.float64(expected[name])).max()
      assert difference <= limit * max(1, np.abs(expected[name]).max()), name


@pytest.mark.parametrize(
  "copied", [copy.deepcopy, nnx.clone, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_compute_the_same(copied):
  for original, x in ((make_filter(), random(2, 4, 6, 4)), (make_model(), random(2, 32, 16, 3))):
    np.testing.assert_array_equal(compiled(copied(original))(x), compiled(original)(x))


def test_filters_stacked_and_scanned_by_nnx():
  """Their gradients are those of the filters one after the other."""
  filters = nnx.split_rngs(splits=3)(
    nnx.vmap(lambda rngs: gfnet_jax.GlobalFilter(4, 4, 6, rngs=rngs))
  )(nnx.Rngs(0))
  tokens = 50 * random(2, 4, 6, 4)
  apply = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
  found = nnx.grad(lambda filters: jnp.square(nnx.remat(apply)(tokens, filters)).sum())(filters)
  weights = filters.complex_weight[...]

  def loss(weights):
    x = tokens
    for weight in weights:
      x = filter_by(make_filter(), weight, x)
    return jnp.square(x).sum()

  expected = jax.jit(jax.grad(loss))(weights)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found.complex_weight[...], expected, atol=1e-5 * scale)
