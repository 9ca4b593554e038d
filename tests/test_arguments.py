"""What models may be built from and called with, and one line for everything else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gfnet_jax
from gfnet_jax.errors import UserError


@pytest.mark.parametrize("kind", [int, np.int32, np.uint8, jnp.int32])
def test_sizes_of_any_integer_type(kind):
  layer = gfnet_jax.GlobalFilter(kind(4), kind(2), kind(6), rngs=nnx.Rngs(0))
  assert (layer.complex_weight.shape, layer.grid) == ((2, 2, 4, 4), (2, 6))
  options = dict(image_size=kind(32), embed_dim=kind(8), depth=kind(1), num_classes=kind(3))
  model = nnx.eval_shape(lambda: gfnet_jax.create_model("gfnet-ti", **options))
  assert all(
    type(size) is int for name, size in model.settings if name in options and name != "image_size"
  )
  assert model.image_size == (32, 32)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((-4, 2, 6), "dim is -4, expected a positive integer"),
    ((4, 2.0, 6), "height is 2.0, expected a positive integer"),
    ((4, 2, "6"), "width is '6', expected a positive integer"),
    ((4, np.float32(2), 6), "height is np.float32(2.0), expected a positive integer"),
    ((True, 2, 6), "dim is True, expected a positive integer"),
    ((4, [2], 6), "height is [2], expected a positive integer"),
  ],
)
def test_other_sizes_of_a_filter_are_named(sizes, message):
  with pytest.raises(UserError, match=re.escape(message)):
    gfnet_jax.GlobalFilter(*sizes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("rngs", [1, None, "0", jax.random.PRNGKey(0), nnx.Rngs(dropout=0)])
def test_other_sources_of_weights_are_named(rngs):
  for make in (gfnet_jax.GlobalFilter, lambda *_, rngs: gfnet_jax.GFNet(16, 16, 8, 1, rngs=rngs)):
    with pytest.raises(UserError, match=r"^rngs is .* such as flax\.nnx\.Rngs") as caught:
      make(4, 2, 6, rngs=rngs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(patch_size=0), "patch_size is 0, expected a positive integer"),
    (dict(embed_dim="8"), "embed_dim is '8', expected a positive integer"),
    (dict(depth=1.5), "depth is 1.5, expected a positive integer"),
    (dict(image_size=None), "image_size is None, expected a side or (height, width)"),
    (dict(image_size=np.array([16.0, 16.0])), "image_size is array([16., 16.]), expected a side"),
    (dict(mlp_ratio=float("nan")), "mlp_ratio is nan, expected a number that makes hidden"),
    (dict(mlp_ratio=0), "mlp_ratio is 0, expected a number that makes hidden channels of 8"),
    (dict(drop_path_rate="0.1"), "drop_path_rate is '0.1', expected at least 0"),
    (dict(dtype="float99"), "dtype is 'float99', expected a float type"),
    (dict(dtype=int), "dtype is <class 'int'>, expected a float type"),
  ],
)
def test_other_options_of_a_network_are_named(options, message):
  arguments = dict(image_size=16, patch_size=16, embed_dim=8, depth=1) | options
  with pytest.raises(UserError, match=re.escape(message)):
    nnx.eval_shape(lambda: gfnet_jax.GFNet(**arguments, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(depths=4), "depths is 4, expected at least one block in every stage"),
    (dict(depths=(1, 1, 1, "1")), "depths is (1, 1, 1, '1'), expected at least one block"),
    (dict(embed_dims=(8, 8, 8, -8)), "embed_dims is (8, 8, 8, -8), expected channels"),
  ],
)
def test_other_stages_are_named(options, message):
  with pytest.raises(UserError, match=re.escape(message)):
    gfnet_jax.create_model("gfnet-h-ti", image_size=32, **options)


def test_other_keys_images_and_tokens_are_named():
  model = gfnet_jax.create_model("gfnet-ti", image_size=16, embed_dim=8, depth=1)
  layer = gfnet_jax.GlobalFilter(3, 16, 16, rngs=nnx.Rngs(0))
  images = np.ones((2, 16, 16, 3), np.float32)
  keys = (1.5, "seed", True, nnx.Rngs(0), jnp.zeros(2), jax.random.split(jax.random.key(0), 3))
  for key in keys:
    with pytest.raises(UserError, match=r"^key is .*, expected one PRNG key such as") as caught:
      model(images, key=key)
    assert "\n" not in str(caught.value)
  for call in (model, layer):
    for other, message in {
      "list": (images.tolist(), "as list, expected an array of JAX or NumPy"),
      "string": ("photo.jpg", "as str, expected an array"),
      "single": (images[0], "of shape (16, 16, 3), expected (batch, height, width, channels)"),
      "videos": (images[None], "of shape (1, 2, 16, 16, 3), expected (batch, height"),
      "complex": (images + 1j, "of type complex64, expected real numbers"),
      "mask": (images > 0, "of type bool, expected real numbers"),
    }.values():
      with pytest.raises(UserError, match=re.escape(message)):
        call(other)


def test_a_batch_may_be_empty():
  layer = gfnet_jax.GlobalFilter(3, 4, 4, rngs=nnx.Rngs(0))
  model = gfnet_jax.create_model("gfnet-ti", image_size=16, embed_dim=8, depth=1, num_classes=5)
  assert layer(np.ones((0, 4, 4, 3), np.float32)).shape == (0, 4, 4, 3)
  assert model(np.ones((0, 16, 16, 3), np.float32)).shape == (0, 5)
