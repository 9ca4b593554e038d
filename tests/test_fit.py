"""Parameters of our models carried to other sizes, heads and layouts, by our own names."""

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
from gfnet_jax.models.mixers import MIXERS
from gfnet_jax.models.resize import RULES, resize_bicubic, resize_filter, resize_positions
from gfnet_jax.models.stage import BlockStack
from gfnet_jax.models.variants import create_model
from gfnet_jax.weights.state_dict import load_torch_state_dict, to_torch_state_dict

SIZES = {
  "gfnet-ti": dict(embed_dim=8, depth=2),
  "gfnet-h-ti": dict(embed_dims=(4, 8), depths=(1, 2)),
}


@pytest.fixture(autouse=True)
def register(monkeypatch):
  own_mixer.register(monkeypatch)


def create(name="gfnet-ti", *, seed=0, **options):
  options = dict(image_size=(32, 64), num_classes=5) | SIZES[name] | options
  return create_model(name, **options, rngs=initial_rngs(seed))


@functools.cache
def saved(name, scan=False):
  """A model to carry over; not to be changed."""
  return create(name, scan=scan)


def fit(source, **options):
  """The model with fitted parameters, and the head of one with other parameters."""
  fresh = random_model(lambda: create(**options))
  abstract = nnx.eval_shape(lambda: create(**options))
  params = fit_params(source, abstract, split(fresh)[1])
  assert {n: (v.shape, v.dtype) for n, v in params.items()} == {
    n: (v.shape, v.dtype) for n, v in split(abstract)[1].items()
  }
  return merge(split(abstract)[0], params), fresh.head


def assert_equal(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("target_scan", [False, True])
def test_the_same_network_gets_the_very_parameters(name, scan, target_scan):
  model, _ = fit(saved(name, scan), name=name, scan=target_scan)
  assert_equal(split(model)[1], split(saved(name, target_scan))[1])


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("image_size", [(64, 32), 96, 32])
def test_another_size_is_resized_by_the_official_rule(name, scan, image_size):
  """Against the official tensors, each interpolated here."""
  model, _ = fit(saved(name), name=name, scan=scan, image_size=image_size)
  expected = to_torch_state_dict(saved(name))
  stages = zip(saved(name).stages(), model.stages(), strict=True)
  for i, ((old, _), (new, blocks)) in enumerate(stages):
    if i == 0:
      table = expected["pos_embed"].reshape(*old.grid, -1)
      table = resize_bicubic(table, new.grid, align_corners=False)
      expected["pos_embed"] = table.reshape(1, -1, table.shape[-1])
    for j in range(len(blocks)):
      key = f"blocks.{i}.{j}" if name == "gfnet-h-ti" else f"blocks.{j}"
      key += ".filter.complex_weight"
      half = (new.grid[0], new.grid[1] // 2 + 1)
      expected[key] = resize_bicubic(expected[key], half, align_corners=True)
  assert_equal(to_torch_state_dict(model), expected)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("options", [dict(image_size=96), dict(image_size=64, num_classes=7)])
def test_the_way_over_official_names_gives_the_same_bits(name, options):
  model, head = fit(saved(name), name=name, **options)
  other = random_model(lambda: create(name, **options))
  official = to_torch_state_dict(saved(name))
  load_torch_state_dict(other, official, keep_head="num_classes" in options)
  assert_equal(split(model)[1], split(other)[1])
  if "num_classes" in options:
    np.testing.assert_array_equal(model.head.kernel[...], head.kernel[...])


def test_fitted_parameters_share_no_memory_with_the_source():
  source = saved("gfnet-ti")
  for name, value in fit_params(source, create(), {}).items():
    original = split(source)[1][name]
    assert value.unsafe_buffer_pointer() != original.unsafe_buffer_pointer(), name


@pytest.mark.parametrize(
  ("name", "mixer"),
  [
    ("gfnet-ti", "mean"),
    ("gfnet-h-ti", "gate"),
    pytest.param("gfnet-ti", "gate", marks=pytest.mark.slow),
    pytest.param("gfnet-h-ti", "mean", marks=pytest.mark.slow),
  ],
)
def test_a_mixer_of_ones_own_is_carried_like_any_other(name, mixer):
  source = create(name, mixer=mixer)
  images = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
  model, _ = fit(source, name=name, mixer=mixer)
  np.testing.assert_array_equal(compiled(model)(images), compiled(source)(images))
  model, head = fit(source, name=name, mixer=mixer, num_classes=7)
  found, expected = (compiled(m, "forward_features")(images) for m in (model, source))
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(model.head.kernel[...], head.kernel[...])
  stacked, _ = fit(source, name=name, mixer=mixer, scan=True)
  assert_equal(split(stacked)[1], split(create(name, mixer=mixer, scan=True))[1])
  assert_equal(split(fit(stacked, name=name, mixer=mixer)[0])[1], split(source)[1])
  larger, _ = fit(source, name=name, mixer=mixer, image_size=(64, 128))
  block, before = (
    list(list(network.stages())[-1][1])[-1].filter.gain[...] for network in (larger, source)
  )
  if mixer == "gate":
    before = np.repeat(np.repeat(before, 2, axis=0), 2, axis=1)
  np.testing.assert_array_equal(block, before)


@pytest.mark.parametrize(
  ("name", "mixer"),
  [("gfnet-ti", "global-local"), ("gfnet-ti", "attention"), ("gfnet-h-ti", "spatial-mlp")],
)
def test_our_mixers_are_carried_to_other_images(name, mixer):
  source = create(name, mixer=mixer, scan=name == "gfnet-h-ti")
  model = resize(source, (64, 96))
  assert jax.eval_shape(model, jnp.zeros((2, 64, 96, 3))).shape == (2, 5)
  for (before, old), (after, new) in zip(source.stages(), model.stages(), strict=True):
    params = {n: np.asarray(v) for n, v in split(old[-1].filter)[1].items()}
    if hasattr(MIXERS[mixer], "resize_params"):
      params = MIXERS[mixer].resize_params(params, before.grid, after.grid)
    assert_equal(split(new[-1].filter)[1], params)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(depth=3), r"do not fit the model: 8 missing \(blocks.2.mlp.fc1.bias, .*\); create it"),
    (dict(depth=1), r"8 unexpected \("),
    (dict(embed_dim=12), r"mis-shaped \(.*blocks.0.norm1.scale is \(8,\), expected \(12,\)"),
    (
      dict(patch_size=8),
      r"mis-shaped \(patch_embed.proj.kernel is \(768, 8\), expected \(192, 8\)",
    ),
    (dict(name="gfnet-h-ti", image_size=64), r"missing \(.*unexpected \("),
    (dict(mixer="gate"), "with mixer 'global-filter', the model has 'gate'; create it with mixer="),
    (dict(mixer="conv3"), "with mixer 'global-filter', the model has 'conv3'; create it with"),
  ],
)
def test_another_network_is_refused_in_one_line(options, message):
  with pytest.raises(UserError, match=message) as caught:
    fit(saved("gfnet-ti"), **options)
  assert "\n" not in str(caught.value)


def test_a_mixer_without_a_rule_stays_on_its_grid():
  source = create(mixer="no-rule")
  assert_equal(split(fit(source, mixer="no-rule")[0])[1], split(source)[1])
  message = r"mixer 'no-rule' cannot be carried to images of 64 x 64 pixels: .*resize_params; add"
  with pytest.raises(UserError, match=message):
    fit(source, mixer="no-rule", image_size=64)


def test_official_names_know_the_global_filter_only():
  model = create(mixer="gate")
  message = "mixes tokens by 'gate', but the official format knows only 'global-filter'; keep"
  with pytest.raises(UserError, match=message):
    to_torch_state_dict(model)
  with pytest.raises(UserError, match=message):
    load_torch_state_dict(model, to_torch_state_dict(saved("gfnet-ti")))


@pytest.mark.parametrize("name", SIZES)
def test_resize_returns_a_like_model_for_another_size(name):
  options = dict(drop_path_rate=0.5, scan=True, remat=True, dtype=jnp.bfloat16, backend="dense")
  source = create(name, **options)
  before = split(source)[1]
  model = gfnet_jax.resize(source, (96, 64))
  assert source.image_size == (32, 64)
  assert_equal(split(source)[1], before)
  fitted, _ = fit(source, name=name, image_size=(96, 64), **options)
  (structure, params), (expected_structure, expected) = split(model), split(fitted)
  assert structure == expected_structure
  assert_equal(params, expected)
  assert all(isinstance(blocks, BlockStack) for _, blocks in model.stages())
  assert jax.eval_shape(model, jnp.zeros((1, 96, 64, 3))).shape == (1, 5)


def test_resize_there_and_back_keeps_a_mixer_of_ones_own():
  source = create(mixer="gate")
  model = resize(resize(source, (64, 128)), (32, 64))
  assert model.mixer == "gate"
  for block, before in zip(model.blocks, source.blocks, strict=True):
    np.testing.assert_array_equal(block.filter.gain[...], before.filter.gain[...])


def test_resize_refuses_what_the_patches_do_not_divide():
  with pytest.raises(UserError, match="image_size 40x64 is not divisible by 16"):
    resize(saved("gfnet-ti"), (40, 64))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SIZES)
def test_every_rule_carries_position_embedding_and_filters(name, rule):
  source = saved(name, scan=name == "gfnet-h-ti")
  model = resize(source, (96, 32), rule)
  pos_embed = resize_positions(np.asarray(source.pos_embed[...]), model.pos_embed.shape[:2], rule)
  np.testing.assert_array_equal(model.pos_embed[...], pos_embed)
  for (before, old), (after, new) in zip(source.stages(), model.stages(), strict=True):
    weight = np.asarray(old[-1].filter.complex_weight[...])
    expected = resize_filter(weight, before.grid, after.grid, rule)
    np.testing.assert_array_equal(new[-1].filter.complex_weight[...], expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_filter_is_resized_alone(rule):
  layer = gfnet_jax.GlobalFilter(2, 5, 6, backend="dense", precision="highest", rngs=nnx.Rngs(0))
  weight = np.asarray(layer.complex_weight[...])
  resized = gfnet_jax.resize(layer, (4, 9), rule)
  assert (resized.grid, resized.backend, resized.precision) == ((4, 9), "dense", "highest")
  expected = resize_filter(weight, (5, 6), (4, 9), rule)
  np.testing.assert_array_equal(resized.complex_weight[...], expected)
  assert layer.grid == (5, 6)
  np.testing.assert_array_equal(layer.complex_weight[...], weight)
  assert resized(jnp.ones((1, 4, 9, 2))).shape == (1, 4, 9, 2)


def test_the_rule_kernel_means_the_same_neighbours_to_a_filter():
  """On a larger grid, away from the border: against the convolution of the smaller one."""
  layer = gfnet_jax.GlobalFilter(1, 4, 5, backend="fft", rngs=nnx.Rngs(0))
  larger = gfnet_jax.resize(layer, (9, 12), "kernel")
  expected = np.zeros((9, 12, 1), np.float32)
  for y in range(-2, 2):
    for x in range(-2, 3):
      expected[y, x] = layer.kernel()[y, x]
  np.testing.assert_allclose(larger.kernel(), expected, atol=1e-7)


@pytest.mark.parametrize("rule", ["offical", None, ["kernel"]])
def test_an_unknown_rule_is_refused_in_one_line(rule):
  with pytest.raises(UserError, match=r"unknown rule .*, expected one of official, bilinear"):
    resize(saved("gfnet-ti"), 64, rule)


def test_resizing_what_is_no_model_is_refused():
  with pytest.raises(
    UserError, match="cannot resize a Linear, expected a GFNet, a GFNetPyramid or"
  ):
    resize(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), 32)
