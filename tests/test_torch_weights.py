"""Official state dicts into models and back: strict, and bit for bit."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from helpers import random_model, random_params

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.weights.channels import adapt_channels
from gfnet_jax.weights.state_dict import model_from_torch, recognise

SHAPES = json.loads((Path(__file__).parent / "golden/state_dict_shapes.json").read_text())


def tiny(**settings):
  settings = dict(image_size=16, patch_size=4, embed_dim=8, depth=2, num_classes=5) | settings
  return random_model(lambda: gfnet_jax.GFNet(**settings, rngs=nnx.Rngs(0)))


def tiny_pyramid(**settings):
  settings = dict(image_size=32, embed_dims=(4, 6), depths=(1, 2), num_classes=5) | settings
  return random_model(lambda: gfnet_jax.GFNetPyramid(**settings, rngs=nnx.Rngs(0)))


def assert_same(actual, expected):
  assert list(actual) == list(expected)
  for key, array in expected.items():
    np.testing.assert_array_equal(actual[key], array, err_msg=key, strict=True)


@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_to_pytorch_and_back_is_bit_equal_in_the_official_order(name):
  weights = random_params(SHAPES[name])
  model, config = model_from_torch(weights)
  assert config == dict(name=name, image_size=224, num_classes=1000)
  assert_same(gfnet_jax.to_torch_state_dict(model), weights)


@pytest.mark.parametrize("make", [tiny, tiny_pyramid])
def test_a_model_trained_here_survives_the_trip_to_pytorch(make):
  model, other = make(), make()
  state_dict = gfnet_jax.to_torch_state_dict(model)
  nnx.update(other, jax.tree.map(jnp.zeros_like, nnx.state(other)))
  assert gfnet_jax.load_torch_state_dict(other, state_dict) is other
  jax.tree.map(np.testing.assert_array_equal, nnx.state(other), nnx.state(model))


def test_loaded_weights_are_a_copy():
  state_dict = gfnet_jax.to_torch_state_dict(tiny())
  model = gfnet_jax.load_torch_state_dict(tiny(), state_dict)
  before = state_dict["norm.bias"].copy()
  state_dict["norm.bias"] += 1
  np.testing.assert_array_equal(model.norm.bias[...], before)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_are_converted_to_float32(dtype):
  state_dict = {k: v.astype(dtype) for k, v in gfnet_jax.to_torch_state_dict(tiny()).items()}
  loaded = gfnet_jax.to_torch_state_dict(gfnet_jax.load_torch_state_dict(tiny(), state_dict))
  assert_same(loaded, {key: array.astype(np.float32) for key, array in state_dict.items()})


def test_a_filter_keeps_its_frequencies_and_parts():
  state_dict = gfnet_jax.to_torch_state_dict(tiny())
  weight = np.arange(4 * 3 * 8 * 2, dtype=np.float32).reshape(4, 3, 8, 2)
  state_dict["blocks.1.filter.complex_weight"] = weight
  model = gfnet_jax.load_torch_state_dict(tiny(), state_dict)
  part, row, column, channel = 1, 3, 2, 5
  assert (
    model.blocks[1].filter.complex_weight[...][part, row, column, channel]
    == weight[row, column, channel, part]
  )


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    (lambda d: d.pop("norm.bias"), "1 missing (norm.bias)"),
    (lambda d: d.update(extra=np.zeros(3, np.float32)), "1 unexpected (extra)"),
    (
      lambda d: d.update({"norm.bias": np.zeros(9, np.float32)}),
      "1 mis-shaped (norm.bias is (9,), expected (8,))",
    ),
    (
      lambda d: d.update({"norm.bias": np.zeros(8, np.int32)}),
      "1 not of a float type (norm.bias is int32)",
    ),
    (
      lambda d: d.update({"blocks.1.filter.complex_weight": np.zeros((5, 3, 8, 2), np.float32)}),
      "1 mis-shaped (blocks.1.filter.complex_weight is (5, 3, 8, 2), expected (4, 3, 8, 2))",
    ),
    (
      lambda d: d.update({"head.weight": np.zeros((7, 8), np.float32)}),
      "1 mis-shaped (head.weight is (7, 8), expected (5, 8))",
    ),
    (lambda d: d.clear(), "missing (pos_embed, patch_embed.proj.weight, "),
  ],
)
def test_a_misfit_is_named_in_one_line_and_changes_nothing(change, expected):
  model = tiny()
  before = gfnet_jax.to_torch_state_dict(model)
  state_dict = {key: array + 1 for key, array in before.items()}
  change(state_dict)
  with pytest.raises(UserError, match=re.escape(expected)) as caught:
    gfnet_jax.load_torch_state_dict(model, state_dict)
  assert "\n" not in str(caught.value)
  assert_same(gfnet_jax.to_torch_state_dict(model), before)


def test_the_head_can_be_kept():
  state_dict = gfnet_jax.to_torch_state_dict(tiny(num_classes=7))
  model = tiny()
  head = np.asarray(model.head.kernel[...])
  gfnet_jax.load_torch_state_dict(model, state_dict, keep_head=True)
  np.testing.assert_array_equal(model.head.kernel[...], head)
  np.testing.assert_array_equal(model.norm.scale[...], state_dict["norm.weight"])


def test_another_number_of_classes_gets_the_head_of_a_fresh_model():
  weights = random_params(SHAPES["gfnet-ti"])
  model, config = model_from_torch(weights, num_classes=3)
  assert config["num_classes"] == 3
  fresh = jax.jit(lambda: gfnet_jax.create_model("gfnet-ti", num_classes=3).head.kernel[...])()
  # Compiled alone, the initialiser rounds some values differently in the last bit.
  np.testing.assert_allclose(model.head.kernel[...], fresh, rtol=1e-5)
  np.testing.assert_array_equal(model.norm.bias[...], weights["norm.bias"])


def without(weights, *keys):
  return {key: array for key, array in weights.items() if key not in keys}


def test_weights_without_a_head_are_told():
  weights = without(random_params(SHAPES["gfnet-ti"]), "head.weight", "head.bias")
  with pytest.raises(UserError, match=r"have no head .*--num-classes gives them a fresh one"):
    model_from_torch(weights)


def test_half_a_head_is_no_head_to_be_made_anew():
  weights = without(random_params(SHAPES["gfnet-ti"]), "head.bias")
  with pytest.raises(UserError, match=r"1 missing \(head\.bias\)"):
    model_from_torch(weights)


@pytest.mark.parametrize(("name", "in_dim"), [("gfnet-ti", 1), ("gfnet-h-ti", 4)])
def test_images_of_other_channels_on_request(name, in_dim):
  weights = random_params(SHAPES[name])
  model, config = model_from_torch(weights, in_dim=in_dim)
  assert config == dict(name=name, image_size=224, num_classes=1000, in_dim=in_dim)
  stem = "patch_embed.proj.weight" if name == "gfnet-ti" else "patch_embed.0.proj.weight"
  state_dict = gfnet_jax.to_torch_state_dict(model)
  assert_same(state_dict, {**weights, stem: adapt_channels(weights[stem], in_dim)})
  # And what was written for these channels is read again without a request.
  assert recognise(state_dict) == config


def test_three_channels_are_nothing_to_ask_for():
  weights = random_params(SHAPES["gfnet-ti"])
  _, config = model_from_torch(weights, in_dim=3)
  assert "in_dim" not in config


@pytest.mark.parametrize(
  "key",
  [
    "blocks." + "9" * 5000 + ".norm1.weight",
    "blocks.\u0663.norm1.weight",
    "blocks.0." + "1" * 30 + ".norm1.weight",
    "\x1b[2J\n" * 40_000,
  ],
)
def test_absurd_keys_are_told_in_one_short_line(key):
  with pytest.raises(UserError, match="fit none of the variants") as caught:
    model_from_torch({key: np.zeros((3, 3), np.float32)})
  assert str(caught.value).isprintable()
  model = tiny()
  state_dict = gfnet_jax.to_torch_state_dict(model) | {key: np.zeros((3, 3), np.float32)}
  with pytest.raises(UserError, match="1 unexpected") as caught:
    gfnet_jax.load_torch_state_dict(model, state_dict)
  assert str(caught.value).isprintable()
  assert len(str(caught.value)) < 500


@pytest.mark.parametrize("make", [tiny, tiny_pyramid])
@pytest.mark.parametrize("size", [64, (32, 64), (64, 32)])
def test_another_image_size_resizes_what_depends_on_it(make, size):
  source = gfnet_jax.to_torch_state_dict(make())
  model = gfnet_jax.load_torch_state_dict(make(image_size=size), source)
  resized = gfnet_jax.to_torch_state_dict(model)
  for key, array in source.items():
    if key != "pos_embed" and not key.endswith("complex_weight"):
      np.testing.assert_array_equal(resized[key], array)
  # A constant stays constant under interpolation.
  ones = {key: np.ones_like(array) for key, array in source.items()}
  resized = gfnet_jax.to_torch_state_dict(gfnet_jax.load_torch_state_dict(model, ones))
  for key, array in resized.items():
    np.testing.assert_allclose(array, np.ones_like(array), atol=1e-6, err_msg=key)
  logits = jax.eval_shape(model, jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32))
  assert logits.shape == (1, 5)


def test_a_grid_that_is_not_square_is_recognised():
  shapes = dict(SHAPES["gfnet-h-ti"])
  model = nnx.eval_shape(lambda: gfnet_jax.create_model("gfnet-h-ti", image_size=(64, 96)))
  gfnet_jax.load_torch_state_dict(model, random_params(shapes))
  found = recognise(gfnet_jax.to_torch_state_dict(model))
  assert found == dict(name="gfnet-h-ti", image_size=(64, 96), num_classes=1000)


@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_variants_are_recognised_even_if_a_tensor_is_missing(name):
  weights = {key: np.broadcast_to(np.float32(0), shape) for key, shape in SHAPES[name].items()}
  for key in ("pos_embed", "head.weight", "patch_embed.proj.weight", "norm.bias"):
    assert recognise({k: v for k, v in weights.items() if k != key})["name"] == name


@pytest.mark.parametrize("state_dict", [{}, {"conv1.weight": np.zeros((3, 3), np.float32)}])
def test_other_networks_are_refused(state_dict):
  with pytest.raises(UserError, match="fit none of the variants"):
    model_from_torch(state_dict)


def test_the_wrong_variant_by_name_is_refused():
  with pytest.raises(UserError, match="do not fit the model"):
    model_from_torch(random_params(SHAPES["gfnet-ti"]), name="gfnet-xs")
