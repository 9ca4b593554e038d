"""Blocks recomputed and stacked, against separate ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import random_model

from gfnet_jax.checkpoints.model import save_model
from gfnet_jax.inference.saved_model import load_model
from gfnet_jax.models.functional import Params, merge, split
from gfnet_jax.models.layers import Block
from gfnet_jax.models.stage import BlockStack
from gfnet_jax.models.variants import create_model
from gfnet_jax.sharding import make_mesh
from gfnet_jax.training.initialize import initial_params
from gfnet_jax.weights.state_dict import (
  load_torch_state_dict,
  model_from_torch,
  to_torch_state_dict,
)

SIZES = {
  "gfnet-ti": dict(embed_dim=16, depth=2),
  "gfnet-h-ti": dict(embed_dims=(8, 16), depths=(2, 1), layer_scale_init=1.0),
}


def create(name, **options):
  return create_model(name, image_size=32, num_classes=5, **SIZES[name], **options)


def separated(params: Params) -> Params:
  """The parameters of stacked blocks by the names that separate ones have."""
  separate = {}
  for name, value in params.items():
    prefix, stacked, rest = name.partition(".stacked.")
    names = [f"{prefix}.{i}.{rest}" for i in range(len(value))] if stacked else [name]
    separate |= zip(names, value if stacked else [value], strict=True)
  return separate


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", ["gfnet-ti", pytest.param("gfnet-h-ti", marks=pytest.mark.slow)])
def test_recomputing_and_scanning_blocks_change_nothing_but_rounding(name):
  images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))

  def results(**options):
    """Loss and gradients of a training step, and logits."""
    structure, params = split(create(name, drop_path_rate=0.5, **options))

    def loss(params, images):
      return (merge(structure, params)(images, key=jax.random.key(1)) ** 2).sum()

    @jax.jit
    def compute(params, images):
      return *jax.value_and_grad(loss)(params, images), merge(structure, params)(images)

    value, gradients, logits = compute(params, images)
    return value, separated(gradients), logits

  expected = results()
  for options in (dict(remat=True), dict(scan=True), dict(remat=True, scan=True)):
    jax.tree.map(
      lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
      results(**options),
      expected,
    )


@pytest.mark.parametrize("name", SIZES)
def test_stacked_blocks_begin_with_the_weights_of_separate_ones(name):
  stacked, separate = (split(create(name, scan=scan))[1] for scan in (True, False))
  assert sum("stacked" in parameter for parameter in stacked) == (9 if name == "gfnet-ti" else 20)
  assert_equal(separated(stacked), separate)


@pytest.mark.parametrize("name", SIZES)
def test_official_weights_go_into_stacked_blocks_and_out_again(name):
  official = to_torch_state_dict(create(name, rngs=nnx.Rngs(1)))
  model = create(name, scan=True)
  assert load_torch_state_dict(model, official) is model
  assert_equal(separated(split(model)[1]), split(create(name, rngs=nnx.Rngs(1)))[1])
  again = to_torch_state_dict(model)
  assert list(again) == list(official)
  assert_equal(again, official)


def test_an_official_file_becomes_a_model_with_stacked_blocks():
  separate = random_model(lambda: create_model("gfnet-ti", image_size=32, num_classes=5))
  official = to_torch_state_dict(separate)
  model, _ = model_from_torch(official, scan=True)
  assert isinstance(model.blocks, BlockStack)
  assert_equal(to_torch_state_dict(model), official)


def test_a_checkpoint_of_stacked_blocks_is_exported_and_begins_other_runs(tmp_path):
  def config(scan):
    return dict(name="gfnet-ti", image_size=32, num_classes=5, scan=scan, **SIZES["gfnet-ti"])

  def fresh(scan):
    return create_model(**config(scan), rngs=nnx.Rngs(1))

  models = {scan: create_model(**config(scan)) for scan in (True, False)}
  for scan, model in models.items():
    save_model(tmp_path / str(scan), model, config(scan))
  official = to_torch_state_dict(models[False])
  assert_equal(to_torch_state_dict(load_model(tmp_path / "True").model), official)
  mesh = make_mesh()
  for scan, model in models.items():
    make_model = functools.partial(fresh, scan)
    assert_equal(initial_params(make_model, str(tmp_path / str(not scan)), mesh), split(model)[1])


def two_blocks():
  rngs = nnx.Rngs(0)
  return [Block(4, (2, 3), drop_path_rate=rate, rngs=rngs) for rate in (0.0, 0.5)]


def test_calling_a_stack_again_compiles_nothing(caplog):
  stack, x = BlockStack(two_blocks()), jnp.ones((8, 2, 3, 4))
  keys = jax.random.split(jax.random.key(0))
  with jax.log_compiles():
    for compiles in (True, False):
      caplog.clear()
      for arguments in ((x, None), (x, keys)):
        stack(*arguments)
      assert ("XLA compilation of jit(_loop)" in caplog.text) == compiles


def test_a_stack_gives_its_blocks_with_their_own_rates():
  blocks = two_blocks()
  stack = BlockStack(blocks)
  assert len(stack) == 2
  assert [block.drop_path_rate for block in stack] == [0.0, 0.5]
  assert stack[-1].drop_path_rate == 0.5
  with pytest.raises(TypeError):
    stack[:1]
  x = jax.random.normal(jax.random.key(0), (8, 2, 3, 4))
  for mine, block in zip(stack, blocks, strict=True):
    assert_equal(mine(x, key=jax.random.key(1)), block(x, key=jax.random.key(1)))
    # Copies: the stack does not change with them.
    mine.norm1.scale[...] = jnp.zeros(4)
  assert_equal(stack.stacked.norm1.scale[...], np.ones((2, 4), np.float32))
