"""Random changes of colours, against colorsys and by hand."""

import colorsys
import pickle
import random

import numpy as np
import pytest
from PIL import Image

from gfnet_jax.data.augmentations import make_augmentation
from gfnet_jax.data.jitter import shift_hue
from gfnet_jax.errors import UserError


def picture() -> Image.Image:
  return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))


def make(text):
  return make_augmentation(text, interpolation="bicubic")


@pytest.mark.parametrize("shift", [-0.4, -0.1, 0.25, 0.5])
def test_hues_move_as_in_colorsys(shift):
  found = np.asarray(shift_hue(picture(), shift), int)
  for pixel, moved in zip(np.asarray(picture()).reshape(-1, 3), found.reshape(-1, 3), strict=True):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
    expected = 255 * np.array(
      colorsys.hsv_to_rgb((hue + int(shift * 255) / 256) % 1, saturation, value)
    )
    np.testing.assert_allclose(moved, expected, atol=8)  # one step of hue is 6 of 256
  assert not np.array_equal(found, np.asarray(picture()))


def test_a_jitter_of_nothing_changes_nothing():
  np.testing.assert_array_equal(make("jitter")(picture(), random.Random(0)), picture())


def test_brightness_is_a_factor():
  rng = random.Random(3)
  found = np.asarray(make("jitter-b0.5")(picture(), rng), float)
  factor = random.Random(3).uniform(0.5, 1.5)
  np.testing.assert_allclose(found, np.minimum(255, np.asarray(picture()) * factor), atol=1)


def test_draws_depend_on_the_generator_alone_and_survive_pickling():
  jitter = make("jitter-b0.4-c0.4-s0.4-h0.4")
  copy = pickle.loads(pickle.dumps(jitter))
  found = [np.asarray(make(picture(), random.Random(7))) for make in (jitter, copy)]
  np.testing.assert_array_equal(*found)
  assert not np.array_equal(found[0], np.asarray(jitter(picture(), random.Random(8))))


@pytest.mark.parametrize(
  "text", ["jitter-h0.6", "jitter-x1", "jitter-b0.1-b0.2", "jitter-b", "jitter-"]
)
def test_malformed_jitters_are_refused(text):
  with pytest.raises(UserError, match=f"auto_augment is '{text}', expected jitter and sections of"):
    make(text)
