"""Features of stages and blocks, models without a head, and images of other sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import own_mixer
import pytest
from flax import nnx
from helpers import compiled, random_model

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.models.fit import fit_params, resize
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.layers import PatchEmbed
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.resize import resize_positions
from gfnet_jax.training.initialize import describe_weights
from gfnet_jax.weights.state_dict import model_from_torch

SIZES = {
  "gfnet-ti": dict(embed_dim=4, depth=3, patch_size=8),
  "gfnet-h-ti": dict(embed_dims=(2, 4), depths=(1, 2), patch_size=4),
}
IMAGES = jax.random.normal(jax.random.key(0), (2, 32, 16, 3))
OTHERS = jax.random.normal(jax.random.key(1), (2, 16, 40, 3))


@functools.cache
def model(name="gfnet-ti", **options):
  """Not to be changed."""
  options = dict(image_size=(32, 16), num_classes=5) | SIZES[name] | options
  return gfnet_jax.create_model(name, **options, rngs=initial_rngs(0))


def test_features_come_in_the_order_of_their_numbers():
  network = model("gfnet-h-ti")
  call = jax.jit(
    lambda x: [
      network.forward_intermediates(x, stages=stages) for stages in (None, (-1, 1, 0), [], range(1))
    ]
  )
  (first, second), (last, same, start), none, (alone,) = call(IMAGES)
  assert (first.shape, second.shape) == ((2, 8, 4, 2), (2, 4, 2, 4))
  for found, expected in ((last, second), (same, second), (start, first), (alone, first)):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
  assert none == []


def test_in_training_blocks_and_stages_are_dropped_alike():
  network, key = model("gfnet-h-ti", drop_path_rate=0.9), jax.random.key(2)
  call = jax.jit(
    lambda x: (
      network.forward_intermediates(x, stages=[0, 1], key=key),
      network.forward_intermediates(x, blocks=[0, 2], key=key),
      network.forward_intermediates(x, blocks=[2]),
    )
  )
  by_stage, by_block, (whole,) = call(IMAGES)
  for found, expected in zip(by_block, by_stage, strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
  assert not np.allclose(by_block[1], whole, rtol=1e-6, atol=1e-6)


def test_nothing_behind_the_last_stage_is_computed(monkeypatch):
  network, called = model("gfnet-h-ti"), []
  call = PatchEmbed.__call__
  monkeypatch.setattr(PatchEmbed, "__call__", lambda *args: called.append(0) or call(*args))
  for stages, count in (([0], 1), ([1], 2), ([], 0)):
    called.clear()
    jax.eval_shape(lambda x, s=stages: network.forward_intermediates(x, stages=s), IMAGES)
    assert len(called) == count


@pytest.mark.parametrize("name", SIZES)
def test_features_of_blocks_are_those_of_the_blocks_one_by_one(name):
  network = model(name)

  @jax.jit
  def one_by_one(x):
    outputs = []
    for i, (patch_embed, blocks) in enumerate(network.stages()):
      x = patch_embed(x) + (network.pos_embed[...][None] if i == 0 else 0)
      for block in blocks:
        x = block(x)
        outputs.append(x)
    return outputs

  expected = one_by_one(IMAGES)
  found = jax.jit(lambda x: network.forward_intermediates(x, blocks=[2, 0, -2]))(IMAGES)
  for tokens, i in zip(found, [2, 0, 1], strict=True):
    np.testing.assert_allclose(tokens, expected[i], rtol=1e-6, atol=1e-6)


def test_features_of_blocks_in_training_are_those_of_a_stack_too():
  options = dict(drop_path_rate=0.5)
  separate, stacked = model(**options), model(**options, scan=True)
  key = jax.random.key(3)
  (whole,) = jax.jit(lambda x: separate.forward_intermediates(x, key=key))(IMAGES)
  for network in (separate, stacked):
    call = jax.jit(lambda x, n=network: n.forward_intermediates(x, blocks=[2], key=key))
    (last,) = call(IMAGES)
    np.testing.assert_allclose(last, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(stages=[2]), r"stages is \[2\], expected a list of numbers from 0 to 1: the model has 2"),
    (dict(stages=[-3]), r"stages is \[-3\], expected a list"),
    (dict(stages=1), "stages is 1, expected a list"),
    (dict(stages=["last"]), r"stages is \['last'\], expected a list"),
    (dict(blocks=(0, 3)), r"blocks is \(0, 3\), expected a list of numbers from 0 to 2"),
    (dict(blocks=[0], stages=[0]), "got stages and blocks, expected one of the two"),
  ],
)
def test_a_stage_that_is_not_there_is_named_in_one_line(options, message):
  with pytest.raises(UserError, match=message) as caught:
    model("gfnet-h-ti").forward_intermediates(IMAGES, **options)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SIZES)
def test_a_model_without_a_head_returns_the_features_of_one_with_it(name):
  whole, headless = model(name), model(name, num_classes=0)
  assert (headless.num_classes, headless.head) == (0, None)
  assert not [key for key in split(headless)[1] if key.startswith("head")]
  features = compiled(headless)(IMAGES)
  np.testing.assert_array_equal(features, compiled(whole, "forward_features")(IMAGES))
  np.testing.assert_array_equal(features, compiled(headless, "forward_features")(IMAGES))
  assert resize(headless, (16, 40)).num_classes == 0


@pytest.mark.parametrize(
  ("name", "rule", "scan"),
  [
    ("gfnet-ti", "official", False),
    ("gfnet-h-ti", "kernel", True),
    pytest.param("gfnet-ti", "bilinear", True, marks=pytest.mark.slow),
    pytest.param("gfnet-h-ti", "spectrum", False, marks=pytest.mark.slow),
  ],
)
def test_a_dynamic_size_equals_resizing_once(name, rule, scan):
  """Of every stage, and of the logits."""

  def outputs(network):
    structure, params = split(network)

    def call(params, images):
      network = merge(structure, params)
      return [*network.forward_intermediates(images), network(images)]

    return jax.jit(call)(params, OTHERS)

  once = resize(model(name, scan=scan), OTHERS.shape[1:3], rule)
  dynamic = model(name, dynamic_size=rule, scan=scan)
  for found, expected in zip(outputs(dynamic), outputs(once), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_a_dynamic_size_changes_nothing_at_the_own_size_and_can_be_set_later():
  network = resize(model(depth=1), (32, 16))  # a copy
  with pytest.raises(UserError, match="dynamic_size"):
    network(OTHERS)
  network.dynamic_size = "spectrum"
  np.testing.assert_array_equal(compiled(network)(IMAGES), compiled(model(depth=1))(IMAGES))
  found = network(OTHERS)  # eagerly: by the very operations
  np.testing.assert_array_equal(found, resize(model(depth=1), (16, 40), "spectrum")(OTHERS))
  assert resize(network, (16, 40)).dynamic_size == "spectrum"


def test_a_dynamic_size_is_compiled_once_per_size():
  traced = []
  structure, params = split(model(depth=1, dynamic_size="official"))

  @jax.jit
  def call(params, images):
    traced.append(images.shape)
    return merge(structure, params)(images)

  for images in (IMAGES, OTHERS, IMAGES, OTHERS + 1):
    call(params, images)
  assert traced == [IMAGES.shape, OTHERS.shape]


def test_a_dynamic_size_is_differentiable():
  """Along a direction: as the resized model along the resized direction."""
  source = model("gfnet-ti", depth=1)
  once = resize(source, OTHERS.shape[1:3], "spectrum")
  structure, params = split(source)
  direction = {
    name: jnp.asarray(np.random.default_rng(0).standard_normal(v.shape), jnp.float32)
    for name, v in params.items()
  }
  along = split(resize(merge(structure, direction), OTHERS.shape[1:3], "spectrum"))[1]

  def slope(network, direction):
    structure, params = split(network)

    def loss(params):
      return (merge(structure, params)(OTHERS) * jnp.arange(0.0, 500, 100)[None]).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    return {name: jnp.vdot(gradient[name], direction[name]) for name in params}

  found = slope(model("gfnet-ti", depth=1, dynamic_size="spectrum"), direction)
  expected = slope(once, along)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
  assert all(abs(expected[name]) > 1e-2 for name in ("pos_embed", "blocks.0.filter.complex_weight"))


def test_a_dynamic_size_refuses_what_the_patches_do_not_divide():
  with pytest.raises(UserError, match="image_size 16x36 is not divisible by 8"):
    model(dynamic_size="official")(OTHERS[:, :, :36])
  with pytest.raises(UserError, match=r"got images of shape \(16, 40, 3\)"):
    model(dynamic_size="official")(OTHERS[0])
  with pytest.raises(UserError, match="unknown rule 'bicubic', expected one of official, "):
    model(dynamic_size="bicubic")
  with pytest.raises(UserError, match="dynamic_size is 3, expected a name or None"):
    model(dynamic_size=3)


@pytest.mark.parametrize(
  "mixer", [pytest.param(m, marks=pytest.mark.slow) for m in MIXERS if m != "global-filter"]
)
def test_other_mixers_take_a_dynamic_size(mixer):
  network = model(mixer=mixer, depth=1, dynamic_size="bilinear")
  once = resize(model(mixer=mixer, depth=1), (16, 40), "bilinear")
  np.testing.assert_allclose(jax.jit(network.__call__)(OTHERS), once(OTHERS), rtol=1e-5, atol=2e-6)


def test_a_mixer_of_ones_own_gets_the_rule_if_it_takes_it(monkeypatch):
  own_mixer.register(monkeypatch)
  rules = []

  class WithRule(own_mixer.Gate):
    @staticmethod
    def resize_params(params, before, after, rule):
      rules.append(rule)
      return {"gain": resize_positions(params["gain"], after, rule)}

  class OfNumpy(own_mixer.Gate):
    @staticmethod
    def resize_params(params, before, after):
      return {"gain": np.resize(params["gain"], (*after, params["gain"].shape[-1]))}

  monkeypatch.setitem(MIXERS, "with-rule", WithRule)
  monkeypatch.setitem(MIXERS, "of-numpy", OfNumpy)
  network = model(mixer="with-rule", depth=1, dynamic_size="kernel")
  assert jax.eval_shape(network, OTHERS).shape == (2, 5)
  assert rules == ["kernel"]
  network = model(mixer="of-numpy", depth=1, dynamic_size="kernel")
  assert network(OTHERS).shape == (2, 5)
  structure, params = split(network)
  with pytest.raises(UserError, match="mixer 'of-numpy' takes NumPy's arrays only, expected"):
    jax.eval_shape(lambda params: merge(structure, params)(OTHERS), params)


def test_a_filter_resized_inside_a_compiled_function():
  layer = gfnet_jax.GlobalFilter(2, 5, 6, rngs=nnx.Rngs(0))
  structure, params = split(layer)
  tokens = jax.random.normal(jax.random.key(0), (1, 7, 4, 2))

  @jax.jit
  def call(params, tokens):
    return resize(merge(structure, params), tokens.shape[1:3], "spectrum")(tokens)

  expected = resize(layer, (7, 4), "spectrum")(tokens)
  np.testing.assert_allclose(call(params, tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_a_head_is_left_out_and_added_by_fitting(name):
  whole, headless = model(name), model(name, num_classes=0)
  left = fit_params(whole, headless, split(headless)[1])
  expected = {key: value for key, value in split(whole)[1].items() if not key.startswith("head")}
  assert left.keys() == expected.keys() == split(headless)[1].keys()
  added = fit_params(headless, whole, split(whole)[1])
  assert added["head.kernel"] is split(whole)[1]["head.kernel"]
  for key, value in expected.items():
    np.testing.assert_array_equal(left[key], value)
    np.testing.assert_array_equal(added[key], value)


def test_official_weights_are_taken_without_their_head_and_given_back_so():
  whole = random_model(lambda: gfnet_jax.create_model("gfnet-ti", image_size=16))
  weights = gfnet_jax.to_torch_state_dict(whole)
  found, config = model_from_torch(weights, num_classes=0)
  assert (found.head, config["num_classes"]) == (None, 0)
  back = gfnet_jax.to_torch_state_dict(found)
  assert list(back) == [key for key in weights if not key.startswith("head")]
  np.testing.assert_array_equal(back["norm.weight"], weights["norm.weight"])
  again, _ = model_from_torch(back, num_classes=0)  # of a file without a head
  assert again.head is None


def test_a_checkpoint_without_a_head_is_read_but_predicts_nothing(tmp_path):
  headless = model(num_classes=0)
  config = dict(name="gfnet-ti", image_size=(32, 16), num_classes=0) | SIZES["gfnet-ti"]
  gfnet_jax.save_model(tmp_path / "model", headless, config)
  saved = gfnet_jax.load_model(tmp_path / "model")
  assert saved.model.head is None
  assert describe_weights(saved, model()).endswith("with a new head: 5 classes instead of 0")
  with pytest.raises(UserError, match=r"the model has no head .* take its features") as caught:
    saved.predict(np.zeros((32, 16, 3), np.uint8))
  assert "\n" not in str(caught.value)
