"""The contract of a token mixer, kept by ours and enough for a mixer of one's own."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import own_mixer
import pytest
from flax import nnx
from helpers import collectives, compiled
from jax.sharding import AxisType, PartitionSpec

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.stage import separate_blocks
from gfnet_jax.models.variants import create_model
from gfnet_jax.sharding import make_mesh, replicated, split_batch

NAMES = [*MIXERS, "gate", "no-rule", "mean"]
WITHOUT_PARAMETERS = ("fnet", "identity")
DIM = 4


@pytest.fixture(autouse=True)
def register(monkeypatch):
  own_mixer.register(monkeypatch)


def make(mixer, grid=(4, 6), seed=0):
  arguments = dict(backend="auto", dtype=jnp.float32, rngs=nnx.Rngs(seed))
  return MIXERS[mixer](DIM, *grid, **arguments)


def create(mixer, **options):
  sizes = dict(image_size=(32, 64), num_classes=5, embed_dim=8, depth=2)
  return create_model("gfnet-ti", mixer=mixer, **sizes, **options)


@pytest.mark.parametrize("mixer", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tokens_keep_their_shape_and_become_float32(mixer, dtype):
  layer, tokens = make(mixer), jax.random.normal(jax.random.key(0), (2, 4, 6, DIM), dtype)
  mixed = jax.jit(lambda tokens: layer(tokens))(tokens)
  assert mixed.shape == tokens.shape
  assert mixed.dtype == jnp.float32
  assert np.allclose(mixed, tokens.astype(jnp.float32)) == (mixer == "identity")


@pytest.mark.parametrize("mixer", NAMES)
def test_images_do_not_affect_each_other(mixer):
  layer = compiled(make(mixer))
  tokens = np.array(jax.random.normal(jax.random.key(0), (2, 4, 6, DIM)))
  changed = tokens.copy()  # in place, a call that still runs might see the change
  changed[1] += 1
  before, after = layer(tokens), layer(changed)
  np.testing.assert_array_equal(after[0], before[0])
  assert not np.array_equal(after[1], before[1])


@pytest.mark.parametrize("mixer", NAMES)
def test_the_state_is_float32_parameters_alone(mixer):
  layer = make(mixer)
  structure, params = split(layer)  # raises if there is other state
  assert bool(params) == (mixer not in WITHOUT_PARAMETERS)
  assert all(value.dtype == jnp.float32 for value in params.values())
  assert hash(structure) == hash(split(make(mixer, seed=1))[0])


@pytest.mark.parametrize("mixer", [name for name in NAMES if name != "no-rule"])
@pytest.mark.parametrize("after", [(4, 6), (8, 5), (3, 12)])
def test_parameters_are_resized_to_those_of_another_grid(mixer, after):
  before = {name: np.asarray(value) for name, value in split(make(mixer))[1].items()}
  resized_layer = nnx.eval_shape(lambda: make(mixer, after))
  expected = {name: value.shape for name, value in split(resized_layer)[1].items()}
  if not hasattr(MIXERS[mixer], "resize_params"):
    assert {name: value.shape for name, value in before.items()} == expected
    return
  resized = MIXERS[mixer].resize_params(before, (4, 6), after)
  assert {name: value.shape for name, value in resized.items()} == expected
  assert all(value.dtype == np.float32 for value in resized.values())
  if after == (4, 6):
    jax.tree.map(np.testing.assert_array_equal, resized, before)


def test_a_mixer_works_alike_in_separate_and_in_stacked_blocks():
  images = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
  results = []
  for scan in (False, True):
    model = create("gate", scan=scan)
    assert model.mixer == "gate"
    structure, params = split(model)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, structure=structure):
      logits = merge(structure, params)(images, key=jax.random.key(1))
      return (logits**2).sum(), logits

    (_, logits), gradients = loss(params)
    gradients = separate_blocks({n: g for n, g in gradients.items() if n.endswith(".gain")})
    assert list(gradients) == ["blocks.0.filter.gain", "blocks.1.filter.gain"]
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
    results.append((logits, gradients))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_every_mixer_gets_the_backend_and_the_type_of_products():
  block = create("gate", backend="dense", dtype=jnp.bfloat16).blocks[1]
  assert (block.filter.backend, block.filter.dtype) == ("dense", jnp.bfloat16)


@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize("mixer", NAMES)
def test_a_sharded_batch_needs_no_collectives(mixer):
  mesh = make_mesh()
  structure, params = split(make(mixer))
  tokens = jax.random.normal(jax.random.key(0), (2 * mesh.size, 4, 6, DIM))

  def call(params, tokens):
    return merge(structure, params)(tokens)

  with jax.set_mesh(mesh):
    shardings = (replicated(mesh), split_batch(mesh))
    sharded = jax.jit(call, in_shardings=shardings, out_shardings=shardings[1])
    assert collectives(sharded.lower(params, tokens).compile().as_text()) == {}
    mixed = sharded(params, tokens)
  alone = jax.jit(call)(params, tokens)  # of another program, whose roundings differ
  np.testing.assert_allclose(mixed, alone, rtol=0, atol=1e-6 * np.abs(alone).max())


@pytest.mark.usefixtures("compiled_as_for_users")
@pytest.mark.parametrize(
  "mixer",
  [
    *("conv3", "attention"),
    *(
      pytest.param(mixer, marks=pytest.mark.slow)
      for mixer in ("conv7", "fnet", "spatial-mlp", "global-local")
    ),
  ],
)
def test_of_a_sharded_batch_only_gradients_of_parameters_are_summed(mixer):
  mesh = make_mesh()
  structure, params = split(make(mixer))
  tokens = jax.random.normal(jax.random.key(0), (2 * mesh.size, 4, 6, DIM))

  def loss(params, tokens):
    return (merge(structure, params)(tokens) ** 2).sum()

  with jax.set_mesh(mesh):
    shardings = (replicated(mesh), split_batch(mesh))
    gradients = jax.jit(jax.grad(loss, (0, 1)), in_shardings=shardings, out_shardings=shardings)
    program = gradients.lower(params, tokens).compile().as_text()
  found = collectives(program)
  assert set(found) <= {"all-reduce"}
  counts = [
    math.prod(map(int, re.findall(r"\d+", shape[4:])))
    for shapes in found.values()
    for shape in shapes
  ]
  assert sum(counts) == sum(value.size for value in params.values())


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers_on_a_mesh_with_an_explicit_axis(mixer):
  structure, params = split(make(mixer))
  params = {name: np.asarray(value) for name, value in params.items()}
  tokens = np.random.default_rng(0).standard_normal((8, 4, 6, DIM)).astype(np.float32)

  def compute(params, tokens):
    loss = jax.value_and_grad(lambda p, x: (merge(structure, p)(x) ** 2).sum(), (0, 1))
    return loss(params, tokens)

  expected = jax.jit(compute)(params, tokens)
  with jax.set_mesh(jax.make_mesh((8,), ("images",), axis_types=(AxisType.Explicit,))):
    params = {name: jax.device_put(value, PartitionSpec()) for name, value in params.items()}
    found = jax.jit(compute)(params, jax.device_put(tokens, PartitionSpec("images")))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_an_unknown_mixer_is_answered_with_the_nearest_name():
  expected = f"unknown mixer 'global-filtre', expected one of {', '.join(MIXERS)}; "
  with pytest.raises(UserError, match=re.escape(expected + "did you mean global-filter?")):
    create("global-filtre")


def test_the_filter_alone_needs_neither_backend_nor_dtype():
  layer = gfnet_jax.GlobalFilter(DIM, 4, 6, rngs=nnx.Rngs(0))
  np.testing.assert_array_equal(
    layer.complex_weight[...], make("global-filter").complex_weight[...]
  )


class Wrong(nnx.Module):
  """A mixer that breaks the contract in one way."""

  def __init__(self, dim, height, width, *, backend, dtype, rngs):
    self.gain = nnx.Param(jnp.ones(dim))

  def __call__(self, tokens):
    return tokens


class Constant(Wrong):
  def __init__(self, dim, height, width, **options):
    super().__init__(dim, height, width, **options)
    self.mask = jnp.ones(dim)


class Mean(Wrong):
  def __call__(self, tokens):
    return tokens.mean((1, 2))


class Half(Wrong):
  def __call__(self, tokens):
    return tokens.astype(jnp.bfloat16)


@pytest.mark.parametrize(
  ("mixer", "message"),
  [
    (Constant, "the mixer 'wrong' holds arrays that are not nnx.Param"),
    (Mean, r"the mixer 'wrong' maps \(2, 2, 2, 8\) to \(2, 8\) of float32, expected the same"),
    (Half, r"the mixer 'wrong' maps .* of bfloat16, expected the same shape of float32"),
  ],
)
def test_a_mixer_that_breaks_the_contract_is_named(monkeypatch, mixer, message):
  monkeypatch.setitem(MIXERS, "wrong", mixer)
  options = dict(image_size=32, embed_dim=8, depth=1, mixer="wrong")
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda x: create_model("gfnet-ti", **options)(x), jnp.ones((2, 32, 32, 3)))
