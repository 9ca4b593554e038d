"""Affine distortions against answers by hand and a second formula."""

import math
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gfnet_jax.data.affine import Affine, affine_matrix
from gfnet_jax.data.augmentations import make_augmentation
from gfnet_jax.errors import UserError


def parse(text):
  return make_augmentation(text, interpolation="bilinear")


def moved(image, *, angle=0.0, shift=(0.0, 0.0), scale=1.0, shear=0.0):
  matrix = affine_matrix(image.size, angle=angle, shift=shift, scale=scale, shear=shear)
  return np.asarray(image.transform(image.size, Image.Transform.AFFINE, matrix))


@pytest.fixture
def picture():
  return Image.fromarray(np.arange(1, 61, dtype=np.uint8).reshape(6, 10))


def test_quarter_turns_shifts_and_doubling_by_hand(picture):
  square = picture.crop((0, 0, 6, 6))
  pixels = np.asarray(square)
  np.testing.assert_array_equal(moved(square), pixels)
  np.testing.assert_array_equal(moved(square, angle=math.pi / 2), np.rot90(pixels))
  np.testing.assert_array_equal(moved(square, angle=math.pi), pixels[::-1, ::-1])
  right_and_up = moved(picture, shift=(2.0, -1.0))
  np.testing.assert_array_equal(right_and_up[:-1, 2:], np.asarray(picture)[1:, :-2])
  assert (right_and_up[-1] == 0).all()
  assert (right_and_up[:, :2] == 0).all()
  doubled = moved(square, scale=2.0)
  middle = pixels[1:5, 1:5].repeat(2, axis=0).repeat(2, axis=1)[1:-1, 1:-1]
  np.testing.assert_array_equal(doubled, middle)


def test_a_shear_moves_the_upper_half_to_the_right():
  image = Image.fromarray(np.zeros((4, 9), np.uint8))
  image.putpixel((4, 0), 255)
  image.putpixel((4, 3), 255)
  sheared = moved(image, shear=math.atan(2.0))  # by two pixels per row: 3 up, 3 down
  assert [tuple(place) for place in np.argwhere(sheared == 255).tolist()] == [(0, 7), (3, 1)]


@given(
  st.tuples(st.integers(1, 50), st.integers(1, 50)),
  st.floats(-3, 3),
  st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
  st.floats(0.2, 2),
  st.floats(-1, 1),
)
def test_the_matrix_inverts_shear_scale_turn_and_shift(size, angle, shift, scale, shear):
  a, b, c, d, e, f = affine_matrix(size, angle=angle, shift=shift, scale=scale, shear=shear)
  center = np.array(size) / 2
  turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
  lean = np.array([[1, -math.tan(shear)], [0, 1]])
  for point in ((0.0, 0.0), (3.5, -2.0)):
    there = center + np.array(shift) + scale * turn @ lean @ (np.array(point) - center)
    back = np.array([[a, b], [d, e]]) @ there + np.array([c, f])
    np.testing.assert_allclose(back, point, atol=1e-9)


def test_draws_are_uniform_within_their_limits(monkeypatch):
  seen = []
  monkeypatch.setattr(
    "gfnet_jax.data.affine.affine_matrix",
    lambda size, **given: seen.append(given) or (1, 0, 0, 0, 1, 0),
  )
  rng, augment = random.Random(0), parse("affine-r10-t0.1-s0.2-h5")
  for _ in range(2000):
    augment(Image.new("RGB", (20, 10)), rng)
  drawn = {
    "angle": [math.degrees(given["angle"]) / 10 for given in seen],
    "right": [given["shift"][0] / 2 for given in seen],
    "down": [given["shift"][1] / 1 for given in seen],
    "scale": [(given["scale"] - 1) / 0.2 for given in seen],
    "shear": [math.degrees(given["shear"]) / 5 for given in seen],
  }
  for name, values in drawn.items():
    assert -1 <= min(values) < -0.99 < 0.99 < max(values) <= 1, name
    assert abs(np.mean(values)) < 4 / math.sqrt(3 * 2000), name  # of a uniform one, 4 sigma


def test_it_depends_on_its_generator_alone_and_travels():
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
  augment = parse("affine-r10-t0.1")
  copy = pickle.loads(pickle.dumps(augment))
  first, second = (np.asarray(one(image, random.Random(7))) for one in (augment, copy))
  np.testing.assert_array_equal(first, second)
  assert (first != np.asarray(augment(image, random.Random(8)))).any()
  assert parse("affine") == Affine(interpolation="bilinear")
  np.testing.assert_array_equal(np.asarray(parse("affine")(image, random.Random(0))), image)


@pytest.mark.parametrize(
  "text", ["affine-10", "affine-r", "affine-r-1", "affine-r181", "affine-r1-r2", "affine-s0.95"]
)
def test_malformed_texts_are_refused(text):
  with pytest.raises(UserError, match=r"expected affine and r up to 180, t up to 1, s up to 0\.9"):
    parse(text)
