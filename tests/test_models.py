"""The variants, their initial weights, shapes, stochastic depth and error messages."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import compiled, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

import gfnet_jax
from gfnet_jax.errors import UserError
from gfnet_jax.models.functional import merge, split
from gfnet_jax.models.gfnet import drop_path_rates
from gfnet_jax.models.initializers import initial_rngs
from gfnet_jax.models.layers import drop_path
from gfnet_jax.models.published import PUBLISHED

# Counted on the official implementation.
PARAMETERS = {
  "gfnet-ti": (7_511_784, 8_837_864),
  "gfnet-xs": (15_985_768, 17_974_888),
  "gfnet-s": (24_869_608, 27_933_928),
  "gfnet-b": (43_120_616, 47_206_376),
  "gfnet-h-ti": (15_085_096, 18_452_008),
  "gfnet-h-s": (32_162_632, 37_213_000),
  "gfnet-h-b": (53_744_200, 61_405_768),
}


def test_every_variant_is_tested():
  assert gfnet_jax.list_models() == list(PARAMETERS)
  published = {name: one.parameters for name, one in PUBLISHED.items()}
  assert published == {name: counts[0] for name, counts in PARAMETERS.items()}


@pytest.mark.parametrize("name", gfnet_jax.list_models())
def test_parameter_counts(name):
  counts = []
  for image_size in (224, 384):
    model = nnx.eval_shape(functools.partial(gfnet_jax.create_model, name, image_size=image_size))
    _, params = split(model)
    counts.append(sum(math.prod(value.shape) for value in params.values()))
    assert all(value.dtype == jnp.float32 for value in params.values())
  assert tuple(counts) == PARAMETERS[name]


@pytest.mark.parametrize(
  ("name", "last", "depth"),
  [("gfnet-xs", 0.0, 12), ("gfnet-s", 0.15, 19), ("gfnet-b", 0.25, 19), ("gfnet-h-b", 0.4, 36)],
)
def test_drop_path_grows_linearly_over_all_blocks(name, last, depth):
  model = nnx.eval_shape(lambda: gfnet_jax.create_model(name))
  rates = [block.drop_path_rate for _, blocks in model.stages() for block in blocks]
  np.testing.assert_allclose(rates, [last * i / (depth - 1) for i in range(depth)], rtol=1e-6)


def test_official_rates_of_the_largest_variant():
  rates = drop_path_rates(0.4, 36)
  assert rates[1] == pytest.approx(0.01142857131, rel=1e-9)
  assert rates[-1] == pytest.approx(0.400000006, rel=1e-9)


def test_the_keys_of_initial_weights_are_those_of_flax():
  def draw(make):
    rngs = make(7)
    return jnp.stack([jax.random.key_data(rngs.params()) for _ in range(3)])

  for compute in (lambda make: draw(make), lambda make: jax.jit(lambda: draw(make))()):
    np.testing.assert_array_equal(compute(initial_rngs), draw(nnx.Rngs))


def test_initial_weights():
  options = dict(image_size=64, embed_dims=(64, 128), depths=(1, 1))
  model = gfnet_jax.create_model("gfnet-h-ti", **options)
  _, params = split(model)
  for name, value in params.items():
    kind = name.rpartition(".")[2]
    bound = {"patch_embed.0": 0.1443375673, "patch_embed.1": 0.0625}.get(name[:13])
    if bound:
      assert np.abs(value).max() <= bound
      assert np.abs(value).max() > 0.9 * bound
    elif kind in ("kernel", "complex_weight", "pos_embed"):
      assert np.std(value) == pytest.approx(0.02, rel=0.05)
      assert np.abs(value).max() < 0.2, "no weight of -2.0 as in the official initialisation"
    elif kind == "gamma":
      assert np.all(np.asarray(value) == np.float32(1e-3))
    else:
      assert np.all(np.asarray(value) == (1 if kind == "scale" else 0))


@given(
  grid=st.sampled_from([(1, 1), (1, 4), (3, 1), (5, 7), (8, 6)]), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=20)
def test_the_filter_is_a_circular_convolution(grid, seed):
  """Against sums over all shifts, for odd and even and non-square grids."""
  height, width = grid
  rng = np.random.default_rng(seed)
  layer = filter_of(height, width)
  kernel = rng.standard_normal((height, width, 3))
  transformed = np.fft.rfft2(kernel, axes=(0, 1))
  layer.complex_weight = nnx.Param(
    jnp.asarray(np.stack([transformed.real, transformed.imag]), jnp.float32)
  )
  tokens = rng.standard_normal((2, height, width, 3)).astype(np.float32)
  expected = sum(
    kernel[dy, dx] * np.roll(tokens, (dy, dx), axis=(1, 2))
    for dy in range(height)
    for dx in range(width)
  )
  np.testing.assert_allclose(compiled(layer)(tokens), expected, atol=2e-5)


@functools.cache
def filter_of(height, width):
  """Whoever takes it sets its weight."""
  return gfnet_jax.GlobalFilter(3, height, width, rngs=nnx.Rngs(0))


def test_imaginary_parts_of_the_real_frequencies_have_no_effect():
  layer = gfnet_jax.GlobalFilter(2, 1, 4, rngs=nnx.Rngs(0))
  tokens = jax.random.normal(jax.random.key(0), (1, 1, 4, 2))
  before = layer(tokens)
  weight = layer.complex_weight[...]
  layer.complex_weight[...] = weight.at[1, :, jnp.array([0, 2])].add(5.0)
  np.testing.assert_allclose(layer(tokens), before, atol=1e-6)


@pytest.mark.parametrize("name", ["gfnet-ti", "gfnet-h-ti"])
@pytest.mark.parametrize("image_size", [(32, 64), (96, 32)])
def test_image_sizes_that_are_not_square(name, image_size):
  isotropic = dict(embed_dim=8, depth=1)
  pyramid = dict(embed_dims=(4, 6, 8, 10), depths=(1, 1, 1, 1))
  options = isotropic if name == "gfnet-ti" else pyramid
  options |= dict(image_size=image_size, num_classes=7)
  model = random_model(lambda: gfnet_jax.create_model(name, **options), 0.1)
  images = jax.random.normal(jax.random.key(0), (2, *image_size, 3))
  call = compiled(model)
  logits, features = call(images), compiled(model, "forward_features")(images)
  assert logits.shape == (2, 7)
  assert logits.dtype == features.dtype == jnp.float32
  np.testing.assert_allclose(model.head(features), logits)
  assert not np.allclose(call(images[:, ::-1]), logits), "rows must matter"


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("gfnet-ti", dict(embed_dim=8, depth=2), [(2, 4, 8)]),
    ("gfnet-ti", dict(embed_dim=8, depth=2, scan=True), [(2, 4, 8)]),
    (
      "gfnet-h-ti",
      dict(embed_dims=(4, 6, 8, 10), depths=(1, 2, 1, 1)),
      [(8, 16, 4), (4, 8, 6), (2, 4, 8), (1, 2, 10)],
    ),
  ],
)
def test_intermediates_are_the_tokens_behind_each_stage(name, options, expected):
  """At strides 16, or 4 to 32, of images of 32 x 64; against the blocks called one by one."""
  options |= dict(image_size=(32, 64), num_classes=5)
  structure, params = split(random_model(lambda: gfnet_jax.create_model(name, **options), 0.1))
  images = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))

  @jax.jit
  def compute(params):
    model = merge(structure, params)
    intermediates = model.forward_intermediates(images)
    pooled = model.norm(intermediates[-1]).mean((1, 2))
    return intermediates, pooled, model.forward_features(images)

  @jax.jit
  def one_by_one(params):
    model, x, found = merge(structure, params), images, []
    for i, (patch_embed, blocks) in enumerate(model.stages()):
      x = patch_embed(x) + (model.pos_embed[...][None] if i == 0 else 0)
      for block in blocks:
        x = block(x)
      found.append(x)
    return found

  intermediates, pooled, features = compute(params)
  assert [tokens.shape for tokens in intermediates] == [(2, *shape) for shape in expected]
  for tokens, x in zip(intermediates, one_by_one(params), strict=True):
    assert tokens.dtype == jnp.float32
    np.testing.assert_allclose(tokens, x, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(pooled, features)


@pytest.mark.parametrize("name", ["gfnet-ti", "gfnet-h-ti"])
def test_stages_are_named_as_their_parameters(name):
  model = nnx.eval_shape(lambda: gfnet_jax.create_model(name))
  _, params = split(model)
  stages = list(model.stages())
  assert len(stages) == (4 if "-h-" in name else 1)
  for i, (patch_embed, blocks) in enumerate(stages):
    kernel = f"{model.stage_name('patch_embed', i)}.proj.kernel"
    assert params[kernel] is patch_embed.proj.kernel.get_value()
    last = f"{model.stage_name('blocks', i)}.{len(blocks) - 1}.norm1.scale"
    assert params[last] is blocks[-1].norm1.scale.get_value()


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
  images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  exact, fast = (
    random_model(
      lambda dtype=dtype: gfnet_jax.create_model("gfnet-ti", image_size=32, depth=2, dtype=dtype),
      0.02,
    )
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  logits = compiled(fast)(images)
  assert logits.dtype == jnp.float32
  assert all(value.dtype == jnp.float32 for value in split(fast)[1].values())
  difference = np.abs(logits - compiled(exact)(images)).max()
  assert 0 < difference < 0.02


def test_split_and_merge_are_inverse():
  options = dict(image_size=32, embed_dims=(4, 4), depths=(1, 11))
  model = random_model(lambda: gfnet_jax.create_model("gfnet-h-ti", **options), 0.1)
  structure, params = split(model)
  assert "blocks.1.10.gamma" in params
  images = jnp.ones((1, 32, 32, 3))
  merged = compiled(merge(structure, params))(images)
  np.testing.assert_array_equal(merged, compiled(model)(images))


def test_stochastic_depth_drops_whole_samples_at_the_given_rate():
  branch = jnp.ones((20_000, 2, 2))
  dropped = np.asarray(drop_path(branch, 0.25, jax.random.key(0)))
  per_sample = dropped.reshape(len(dropped), -1)
  assert np.all(per_sample == per_sample[:, :1])
  assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
  assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)


def test_inference_is_the_default_and_a_key_makes_it_stochastic():
  options = dict(image_size=32, embed_dims=(4, 6), depths=(1, 1), drop_path_rate=0.9)
  model = random_model(lambda: gfnet_jax.create_model("gfnet-h-ti", **options), 0.1)
  images = jax.random.normal(jax.random.key(2), (4, 32, 32, 3))
  call = compiled(model)
  np.testing.assert_array_equal(call(images), call(images))
  assert not np.array_equal(call(images, key=jax.random.key(0)), call(images))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(name="gfnet-sx"), "did you mean gfnet-"),
    (dict(name="gfnet-xs", image_size=225), "225x225 is not divisible by 16"),
    (dict(name="gfnet-h-s", image_size=(224, 112)), "224x112 is not divisible by 32"),
    (dict(name="gfnet-h-s", image_size=90), "90x90 is not divisible by 32"),  # nor by 4
    (dict(name="gfnet-h-s", image_size=0), "expected a side or"),
    (dict(name="gfnet-xs", image_size=(224, 224, 3)), "expected a side or"),
    (dict(name="gfnet-xs", embed_dims=(1, 2)), "unknown option 'embed_dims' of gfnet-xs"),
    (dict(name="gfnet-h-s", depths=(1, 2)), "one entry per stage"),
    (dict(name="gfnet-h-s", depths=(1, 2, 0, 1)), "at least one block in every stage"),
    (dict(name="gfnet-xs", drop_path_rate=1.0), "drop_path_rate is 1.0"),
    (dict(name="gfnet-xs", num_classes=-1), "num_classes is -1"),
    (
      dict(name="gfnet-xs", mixer="atention"),
      "unknown mixer 'atention', expected one of global-filter, .*; did you mean attention",
    ),
  ],
)
def test_mistakes_are_named_in_one_line(arguments, message):
  with pytest.raises(UserError, match=message) as caught:
    gfnet_jax.create_model(**arguments)
  assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused():
  model = gfnet_jax.create_model("gfnet-ti", image_size=32, depth=1)
  with pytest.raises(UserError, match=r"got images of shape \(1, 48, 48, 3\)"):
    model(jnp.ones((1, 48, 48, 3)))
  with pytest.raises(UserError, match="GlobalFilter got tokens"):
    model.blocks[0].filter(jnp.ones((1, 2, 2, 3)))


@pytest.mark.parametrize("size", [np.array([32, 64]), (np.int64(32), jnp.int32(64)), [32, 64]])
def test_sizes_may_be_numpys_or_jaxs(size):
  model = nnx.eval_shape(
    lambda: gfnet_jax.create_model("gfnet-ti", image_size=size, num_classes=np.int64(3), depth=1)
  )
  assert (model.image_size, model.head.out_features) == ((32, 64), 3)
